"""`zar models`: what can be loaded by name, searchable."""

from __future__ import annotations

from zar_ray.commands.listing import AsCsv, AsJson, Words, find, show
from zar_ray.commands.parsing import verb
from zar_ray.errors import ModelError
from zar_ray.models.catalogue import KnownModel, known_models
from zar_ray.models.cost import image_gflops, parameter_count, weightless
from zar_ray.video.transforms import Preprocessing

_COUNTED = 12  # models whose sizes are counted unasked: each takes a good part of a second
_COLUMNS = ("model", "tag", "family", "M parameters", "GFLOPs an image", "input", "text tower", "ZAR tunes", "weights")


@verb("zar models")
def models_command(words: Words = (), sizes: bool = False, as_json: AsJson = False, as_csv: AsCsv = False) -> int:
    """Lists what `--model` and `--pretrained` can name, the published systems first; all of it classifies.

    A model of one's own is named by its folder, local-dir:PATH, or by its repository on the hub, hf-hub:ORG/NAME.

    Args:
        words: What to look for in the table's cells, such as "siglip2", "squash" or "stored"; all must be there.
        sizes: Count parameters and GFLOPs of however many models; a dozen are counted anyway.
        as_json: Print JSON alone.
        as_csv: Print CSV alone.
    """
    everything = known_models()
    found = find("zar models", words, everything)
    distinct = {one.model: one for one in found}
    count = sizes or len(distinct) <= _COUNTED
    counted = {name: _sizes(one) if count else ("", "") for name, one in distinct.items()}
    rows = []
    for one in found:
        stored = "stored" if one.stored else "-" if one.tag == "-" else "to be fetched"
        cells = (one.model, one.tag, one.family, *counted[one.model], one.input, one.text, one.tuned, stored)
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    tunable = sum(one.tuned in ("yes", "whole prompts") for one in found)
    footer = (
        f"{len(found)} of {len(everything)}; all classify, ZAR tunes {tunable}. whole prompts: every class's runs"
        " through the text tower from its start, which takes longer."
    )
    show(rows, footer, as_json=as_json, as_csv=as_csv, right=_COLUMNS[3:5])
    return 0


def _sizes(model: KnownModel) -> tuple[str, str]:
    size = model.architecture["vision_cfg"].get("image_size", 224)
    try:
        shape = weightless(model.architecture, model.model, Preprocessing(size))
        return f"{parameter_count(shape) / 1e6:,.1f}", f"{image_gflops(shape):,.1f}"
    except ModelError:
        return "not here", "not here"  # its text tower's config lies on the hub
