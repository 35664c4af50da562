"""The engine beside `transformers.generate`, and beside itself one text at a time."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from jax.sharding import NamedSharding, PartitionSpec

from convert import qwen3 as names
from convert import table
from jaxvlm.generation.engine import Engine, Request, bucket
from jaxvlm.generation.sampling import Sampling, likeliest
from jaxvlm.generation.slots import Program
from jaxvlm.models.decoder import Decoder, decoder_weights
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.tree import pure
from jaxvlm.training.mesh import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = Qwen3Config(
    vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=48,
)  # fmt: skip
END, OWN, VISUAL = 7, 38, 6
GREEDY = Sampling()


@functools.cache
def reference():
    """A random model of transformers whose next tokens are no foregone conclusion."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**TINY.to_hf())
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name:
                value.mul_(8)
            if name == "model.embed_tokens.weight":
                # Reserved, which generation never chooses.
                value[OWN:] *= 0
    return model


@functools.cache
def weights():
    tensors = {name: value.numpy() for name, value in reference().state_dict().items()}
    abstract = nnx.eval_shape(lambda: Qwen3(TINY, rngs=nnx.Rngs(0)))
    ignored = names.ignored(TINY, tensors)
    arrays = table.to_jax(names.rules(TINY), tensors, pure(abstract), ignored)
    return decoder_weights(table.flatten(jax.tree.map(jnp.asarray, arrays)), TINY.num_layers)


@functools.cache
def engine(sampling=GREEDY, rows=3) -> Engine:
    mesh = make_mesh(-1, -1)
    placed = jax.device_put(weights(), NamedSharding(mesh, PartitionSpec()))
    return Engine(Program(Decoder(TINY), sampling, mesh, END, OWN), placed, rows)


def request(number, seed=0, most=12) -> Request:
    """A prompt of 1 to 30 tokens, every second one with visual vectors inside."""
    rng = np.random.default_rng([seed, number])
    length = int(rng.integers(1, 31))
    tokens = rng.integers(0, OWN, length).astype(np.int32)
    index = np.full(length, -1, np.int32)
    if number % 2 and length > VISUAL:
        at = int(rng.integers(0, length - VISUAL + 1))
        index[at : at + VISUAL] = rng.permutation(VISUAL)
        tokens[at : at + VISUAL] = OWN
    visual = rng.normal(size=(VISUAL, TINY.hidden_size)).astype(np.float32)
    return Request(number, number, tokens, index, visual, most)


def by_transformers(asked: Request, **how) -> list[int]:
    """What `generate` makes of a prompt, up to the end."""
    model, ids = reference(), torch.from_numpy(asked.tokens).long()
    x = model.get_input_embeddings()(ids).detach().clone()
    seen = torch.from_numpy(asked.visual_index >= 0)
    x[seen] = torch.from_numpy(asked.visual)[asked.visual_index[asked.visual_index >= 0]]
    out = model.generate(
        input_ids=ids[None], inputs_embeds=x[None], attention_mask=torch.ones_like(ids[None]),
        do_sample=False, max_new_tokens=asked.most, eos_token_id=END, pad_token_id=0,
        suppress_tokens=list(range(OWN, TINY.vocab_size)), **how,
    )[0].tolist()  # fmt: skip
    # With embeddings given, some versions leave the prompt out.
    made = out[len(ids) :] if out[: len(ids)] == ids.tolist() else out
    return made[: made.index(END)] if END in made else made


def answered(engine, requests) -> dict[int, list[int]]:
    return {each.key: each.tokens.tolist() for each in engine.run(requests)}


@pytest.mark.parametrize(("how", "sampling", "count"), [
    ({}, Sampling(), 24),
    pytest.param({}, Sampling(), 200, marks=pytest.mark.slow),
    ({"repetition_penalty": 1.7}, Sampling(repetition_penalty=1.7), 20),
    ({"no_repeat_ngram_size": 2}, Sampling(no_repeat_ngram=2), 20),
    ({"no_repeat_ngram_size": 3, "repetition_penalty": 1.3},
     Sampling(no_repeat_ngram=3, repetition_penalty=1.3), 20),
])  # fmt: skip
def test_greedy_texts_are_those_of_transformers(how, sampling, count):
    asked = [request(number) for number in range(count)]
    found = answered(engine(sampling), asked)
    ended = 0
    for each in asked:
        theirs = by_transformers(each, **how)
        assert found[each.key] == theirs, each.key
        ended += len(theirs) < each.most
    assert how or 0 < ended < count


def test_a_text_has_as_many_ends_as_it_is_given():
    """As `eos_token_id` may have in transformers."""
    asked = [request(number) for number in range(40)]
    plain = answered(engine(), asked)
    # A token that some texts have in their middle.
    other = next(made[1] for made in plain.values() if len(made) > 3)
    mesh = make_mesh(-1, -1)
    placed = jax.device_put(weights(), NamedSharding(mesh, PartitionSpec()))
    program = Program(Decoder(TINY), GREEDY, mesh, END, OWN, other_ends=(other,))
    found = {each.key: each for each in Engine(program, placed, 3).run(asked)}
    cut = 0
    for number, made in plain.items():
        expected = made[: made.index(other)] if other in made else made
        assert found[number].tokens.tolist() == expected
        cut += other in made
        assert found[number].ended or len(expected) == asked[number].most
    assert cut


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    order=st.permutations(range(14)),
    mosts=st.lists(st.integers(1, 20), min_size=14, max_size=14),
    rows=st.sampled_from([1, 2, 3, 9]),
    drawn=st.booleans(),
)
def test_texts_do_not_depend_on_who_is_beside_them(order, mosts, rows, drawn):
    """One by one, or many at a time in any order: the same tokens, drawn ones too."""
    sampling = Sampling(temperature=1.0, top_k=9, top_p=0.9, seed=3) if drawn else Sampling()
    asked = [request(number, 1, most) for number, most in enumerate(mosts)]
    together = answered(engine(sampling, rows), [asked[number] for number in order])
    assert len(together) == len(asked)
    for each in asked:
        alone = answered(engine(sampling, 1), [each])
        assert together[each.key] == alone[each.key]
        assert len(alone[each.key]) <= each.most


def test_a_long_answer_holds_nobody():
    """With two rows, one of them taken for long, all others go through the second."""
    asked = [request(number, 0, 300) for number in range(40)]
    lengths = {number: len(found) for number, found in answered(engine(rows=2), asked).items()}
    long = max(lengths, key=lengths.get)
    short = [number for number in lengths if lengths[number] <= 12][:8]
    # By far more steps than all the short ones take, one after the other and waiting for a look.
    assert lengths[long] >= 299 and len(short) == 8
    order = [each.key for each in engine(rows=2).run(asked[n] for n in [long, *short])]
    assert order[-1] == long and set(order[:-1]) == set(short)


def test_a_stream_is_the_answer_longer_and_longer():
    for number in range(4):
        asked = request(number)
        parts = [part.tolist() for part in engine(Sampling(), 1).stream(asked)]
        whole = answered(engine(), [asked])[number]
        assert parts[-1] == whole
        assert [len(part) for part in parts][: len(whole)] == list(range(1, len(whole) + 1))
        assert all(part == whole[: len(part)] for part in parts)


@given(st.integers(1, 5000))
def test_buckets_hold_and_are_few(length):
    size = bucket(length)
    assert size >= length and (size <= 32 or size < 1.51 * length)
    assert len({bucket(n) for n in range(1, 4097)}) <= 16


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (9, 0.5), (99, 0.01)])
def test_the_likeliest_are_those_of_transformers(top_k, top_p):
    scores = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32) * 3
    theirs = torch.from_numpy(scores)
    if top_k:
        theirs = transformers.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = transformers.TopPLogitsWarper(top_p)(None, theirs)
    np.testing.assert_array_equal(likeliest(jnp.asarray(scores), top_k, top_p), theirs.numpy())


def test_a_draw_is_from_what_transformers_would_draw_from():
    """Temperature before top-k before top-p, by the row's own key."""
    scores = np.random.default_rng(1).normal(size=(60, 40)).astype(np.float32) * 2
    sampling = Sampling(temperature=0.5, top_k=12, top_p=0.8, seed=4)
    theirs = torch.from_numpy(scores)
    for warper in (transformers.TemperatureLogitsWarper(0.5), transformers.TopKLogitsWarper(12),
                   transformers.TopPLogitsWarper(0.8)):  # fmt: skip
        theirs = warper(None, theirs)
    serials, lengths = jnp.arange(60), jnp.arange(60) % 7 + 1
    drawn = sampling.choose(jnp.asarray(scores), jnp.zeros((60, 9), jnp.int32), lengths, serials)
    for row in range(60):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), row), lengths[row])
        assert drawn[row] == jax.random.categorical(key, jnp.asarray(theirs.numpy())[row])


def test_draws_follow_the_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))[None].repeat(4000, 0)
    tokens = jnp.zeros((4000, 1), jnp.int32)
    serials = jnp.arange(4000)
    drawn = Sampling(temperature=1.0).choose(logits, tokens, jnp.ones(4000, jnp.int32), serials)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    other = Sampling(temperature=1.0, seed=1).choose(logits, tokens, serials * 0 + 1, serials)
    assert (drawn != other).mean() > 0.3


@pytest.mark.slow
def test_four_devices_give_the_same_texts(python):
    """Each has rows of its own; the texts are those of transformers, in any order."""
    flags = "--xla_force_host_platform_device_count=4"
    process = python("-m", "pytest", "-q", __file__, "-k", "transformers and 200", XLA_FLAGS=flags)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and "1 passed" in out, out[-3000:] + errors[-3000:]
