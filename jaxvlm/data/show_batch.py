"""A batch as the model gets it: the arrays read back into text, and a picture of its rows.

Axes: B rows, T tokens a row, S image sets a row, L labels a row.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jaxvlm.config import AUTO
from jaxvlm.console import print_table
from jaxvlm.data.images import load_image
from jaxvlm.data.packing import Group
from jaxvlm.data.readers import places_in_row
from jaxvlm.data.record import Record
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.data.top_view import camera_colour, font
from jaxvlm.data.training_set import training_rows

_WIDTH, _GAP, _BAR = 1280, 10, 46
_SIDE = 112
_INK, _QUIET = "#222222", "#777777"
# Even and odd segments of each kind differ a little.
_COLOURS = {
    "text": ("#4c78a8", "#6f98c4"),
    "geometry": ("#f58518", "#f9a85c"),
    "latents": ("#9ecae9", "#c6dff0"),
    "answer": ("#54a24b", "#7fc077"),
    "padding": ("#eeeeee", "#eeeeee"),
}


class BatchView:
    """One device's micro-batch of the training data."""

    def __init__(self, config, number: int):
        """Builds batch `number`.

        Raises:
          UserError: whatever is wrong with the configuration's data.
        """
        size = 1 if config.train.rows_per_device == AUTO else config.train.rows_per_device
        self._config = config
        self._number = number
        self._rows = training_rows(config, (number + 1) * size)
        self._groups = [
            self._rows.plan.row(index) for index in range(number * size, (number + 1) * size)
        ]
        self._batch = self._rows.batch(number * size, (number + 1) * size)
        self._tokenizer = load_tokenizer(config.text.tokenizer)

    def print(self) -> None:
        """Prints shapes, how full the rows are, and the text of every sample."""
        columns = ("array", "shape", "dtype", "MB")
        arrays = [
            (name, str(list(v.shape)), v.dtype.name, f"{v.nbytes / 1e6:.3f}")
            for name, v in self._batch.items()
        ]
        paths = ", ".join(source["path"] for source in self._config.data.train)
        print(f"batch {self._number} of {paths}")
        print_table("What the model gets", columns, arrays)
        for row in range(len(self._groups)):
            print("\n".join(self._row_lines(row)))

    def _row_lines(self, row: int) -> Iterator[str]:
        batch, groups = self._batch, self._groups[row]
        used, length = (batch["segment_ids"][row] > 0).sum(), batch["tokens"].shape[1]
        labels = (batch["label_weights"][row] > 0).sum()
        yield ""
        yield (
            f"row {row}: {used:,} of {length:,} tokens ({used / length:.1%}), "
            f"{len(groups)} of {batch['view_counts'].shape[1]} image sets, "
            f"{sum(len(group.views) for group in groups)} of "
            f"{self._rows.builder.capacity.views} views, "
            f"{batch['segment_ids'][row].max()} samples, "
            f"{labels} of {batch['labels'].shape[1]} labels"
        )
        segment = 0
        for number, group in enumerate(groups):
            record = self._record(group)
            yield f"  image set {number}: {self._set_line(row, number, group, record)}"
            for _ in group.samples:
                segment += 1
                yield f"    segment {segment}: {self._sample_line(row, segment)}"
        yield "  a token sees those before it in its own segment, and positions begin anew in each"

    def _set_line(self, row: int, number: int, group: Group, record: Record) -> str:
        batch = self._batch
        parts = [f"scene {record.scene_id or '-'}"]
        shown = _named([record.images[view] for view in group.views])
        parts.append(f"views {list(group.views)} of {len(record.images)} ({shown})")
        if "features" in batch:
            parts.append(f"{batch['feature_counts'][row, number]:,} cached features")
        known = np.abs(batch["geometry"][row, number]).sum(-1) > 0
        parts.append(f"geometry of {known.sum()} view(s)")
        return "; ".join(parts)

    def _sample_line(self, row: int, segment: int) -> str:
        """Text with its visual span, then what is to be answered, read off the arrays."""
        batch = self._batch
        (places,) = np.nonzero(batch["segment_ids"][row] == segment)
        tokens, visual = batch["tokens"][row, places], batch["visual_index"][row, places]
        first = int(self._answer_begins(row, places))
        read = tokens[: first - places[0] + 1], visual[: first - places[0] + 1]
        text = "".join(self._spans(*read))
        own = (batch["label_positions"][row] >= places[0]) & (
            batch["label_positions"][row] <= places[-1]
        )
        own &= batch["label_weights"][row] > 0
        answer = self._tokenizer.decode_all(batch["labels"][row, own])
        learnt = f"{answer!r} ({own.sum()} labels)" if own.any() else "left out (no image)"
        return f"tokens {places[0]}-{places[-1]}: {text} -> {learnt}"

    def _answer_begins(self, row: int, places: np.ndarray) -> int:
        """The place that predicts the answer's first token."""
        labels = self._batch["label_positions"][row]
        inside = labels[(labels >= places[0]) & (labels <= places[-1]) & (labels > 0)]
        return inside.min() if len(inside) else places[-1]

    def _spans(self, tokens: np.ndarray, visual: np.ndarray) -> Iterator[str]:
        layout = self._rows.builder.layout
        for is_visual, span in groupby(range(len(tokens)), lambda i: visual[i] >= 0):
            places = list(span)
            if is_visual:
                slots = visual[places] % layout.size
                geometry = int((slots < layout.geometry).sum())
                number = int(visual[places[0]] // layout.size)
                named = f"{geometry} geometry + " if geometry else ""
                yield f" <image set {number}: {named}{len(places) - geometry} latents> "
            else:
                yield repr(self._tokenizer.decode_all(tokens[places]))

    def _record(self, group: Group) -> Record:
        builder = self._rows.builder
        return builder.records[builder.samples[group.samples[0]].record]

    def draw(self) -> Image.Image:
        """Every row as a bar of tokens, its image sets below."""
        strips = [self._draw_row(row) for row in range(len(self._groups))]
        height = sum(strip.height for strip in strips) + 60
        picture = Image.new("RGB", (_WIDTH, height), "white")
        y = _GAP
        for strip in strips:
            picture.paste(strip, (0, y))
            y += strip.height
        self._draw_legend(ImageDraw.Draw(picture), y + _GAP)
        return picture

    def _draw_row(self, row: int) -> Image.Image:
        groups, reader = self._groups[row], self._rows.builder.reader
        frame = reader.framing
        across = max(1, (_WIDTH - _GAP) // (_SIDE + _GAP) - 1)
        high = round(_SIDE * frame.height / frame.width)
        lines = [-(-len(group.views) // across) for group in groups]
        height = 26 + _BAR + _GAP + sum(lines) * (high + _GAP) + 2 * _GAP
        strip = Image.new("RGB", (_WIDTH, height), "white")
        pen = ImageDraw.Draw(strip)
        title = next(line for line in self._row_lines(row) if line)
        pen.text((_GAP, 2), title, fill=_INK, font=font(15))
        self._draw_bar(strip, row)
        y = 26 + _BAR + _GAP
        for number, (group, count) in enumerate(zip(groups, lines, strict=True)):
            pen.text((_GAP, y + high // 2), f"image set {number}", fill=_QUIET, font=font(14))
            for slot, picture in enumerate(self._pictures(row, number, group)):
                line, column = divmod(slot, across)
                x = _GAP + (column + 1) * (_SIDE + _GAP)
                top = y + line * (high + _GAP)
                strip.paste(picture.resize((_SIDE, high)), (x, top))
                pen.rectangle((x, top, x + 18, top + 17), fill=camera_colour(group.views[slot]))
                number_at = (x + 9, top + 8)
                pen.text(number_at, str(group.views[slot]), "#ffffff", font(12), anchor="mm")
            y += count * (high + _GAP)
        return strip

    def _pictures(self, row: int, number: int, group: Group) -> list[Image.Image]:
        """The views as they are shown; of cached features, the images they were made from."""
        if "images" in self._batch:
            counts = self._batch["view_counts"][row]
            pixels = self._batch["images"][row, places_in_row(counts, number, counts[number])]
        else:
            record, reader = self._record(group), self._rows.builder.reader
            pixels = [load_image(record.images[view], reader.framing) for view in group.views]
        return [Image.fromarray(view) for view in pixels]

    def _draw_bar(self, strip: Image.Image, row: int) -> None:
        """What stands at each token of a row, from left to right."""
        batch = self._batch
        length = batch["tokens"].shape[1]
        kinds = self._kinds(row)
        shades = batch["segment_ids"][row] % 2
        colours = [
            tuple(int(_COLOURS[kind][shade][i : i + 2], 16) for i in (1, 3, 5))
            for kind, shade in zip(kinds, shades, strict=True)
        ]
        bar = Image.fromarray(np.array([colours], np.uint8))
        strip.paste(bar.resize((_WIDTH - 2 * _GAP, _BAR), Image.Resampling.BOX), (_GAP, 26))
        pen = ImageDraw.Draw(strip)
        scale = (_WIDTH - 2 * _GAP) / length
        sets = batch["visual_index"][row] // self._rows.builder.layout.size
        for number in range(len(self._groups[row])):
            (places,) = np.nonzero((batch["visual_index"][row] >= 0) & (sets == number))
            segments = batch["segment_ids"][row, places]
            (inside,) = np.nonzero(np.isin(batch["segment_ids"][row], segments))
            left, right = (_GAP + scale * edge for edge in (inside[0], inside[-1] + 1))
            pen.rectangle((left, 26, right, 26 + _BAR), outline=_INK, width=2)
            pen.text((left + 6, 28), f"image set {number}", fill=_INK, font=font(13))

    def _kinds(self, row: int) -> Sequence[str]:
        """What each token of a row is."""
        batch, layout = self._batch, self._rows.builder.layout
        kinds = np.full(batch["tokens"].shape[1], "padding", object)
        kinds[batch["segment_ids"][row] > 0] = "text"
        visual = batch["visual_index"][row]
        kinds[visual >= 0] = "latents"
        kinds[(visual >= 0) & (visual % layout.size < layout.geometry)] = "geometry"
        kinds[batch["label_positions"][row][batch["label_weights"][row] > 0]] = "answer"
        return kinds

    def _draw_legend(self, pen: ImageDraw.ImageDraw, y: int) -> None:
        x = _GAP
        names = {"answer": "predicts a token of the answer", "latents": "latents of the projector"}
        for kind, (colour, _) in _COLOURS.items():
            pen.rectangle((x, y, x + 16, y + 16), fill=colour, outline=_QUIET)
            text = names.get(kind, kind)
            pen.text((x + 22, y), text, fill=_INK, font=font(14))
            x += 50 + round(pen.textlength(text, font=font(14)))


def _named(images: Sequence[str]) -> str:
    """Paths, a folder that all of them lie in named once."""
    folders = {str(Path(image).parent) for image in images}
    if len(folders) > 1:
        return ", ".join(images)
    return f"{folders.pop()}: {', '.join(Path(image).name for image in images)}"
