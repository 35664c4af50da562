"""Pretrains the small VGGT that is shipped: `python -m jaxvlm.rooms.pretrain --help`."""

if __name__ == "__main__":
    # The work stands with the other training code; nothing else in this folder needs jax.
    from jaxvlm import entry
    from jaxvlm.training import pretrain

    entry.run(pretrain.parser(), pretrain.pretrain, configured=False)
