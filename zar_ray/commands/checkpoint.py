"""The commands `zar checkpoint VERB`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from zar_ray.commands.parsing import verb
from zar_ray.errors import ConfigError


@verb("zar checkpoint parity")
def checkpoint_parity_command(fixtures: Annotated[Path, tyro.conf.Positional], videos: Path | None = None) -> int:
    """Prints one line an array: name, largest absolute difference, tolerance, ok; exit status 1 on any miss.

    Args:
        fixtures: A fixture's folder, or a folder of such folders.
        videos: Folder that a fixture's video files are looked up under; by default found above the fixture.
    """
    from zar_ray.parity.checks import format_checks
    from zar_ray.parity.run import check_fixtures

    checks = check_fixtures(fixtures, videos)
    print(format_checks(checks))
    return 0 if all(check.ok for check in checks) else 1


@verb("zar checkpoint import")
def checkpoint_import_command(
    file: Annotated[Path, tyro.conf.Positional],
    base: str | None = None,
    model: str | None = None,
    settings: tuple[str, ...] = (),
    output: Path | None = None,
) -> int:
    """Recognises OpenAI's, open_clip's and the published systems' files by their keys (docs/models.md).

    Args:
        file: The checkpoint.
        base: What gives tensors that the file lacks: a checkpoint file, or an open_clip NAME:TAG such as
            ViT-B-16-quickgelu:openai.
        model: The open_clip name of its architecture, for open_clip's files, which do not tell their activation.
        settings: NAME=VALUE words for what no tensor tells, such as prefix=4 postfix=4 heads=2 of an A5 file, or
            vision_heads, text_heads and quick_gelu=false of any; what was assumed is printed.
        output: The .safetensors file to write; by default beside the file, ending in .zar.safetensors.
    """
    from zar_ray.models.importing import default_output, plan_import

    plan = plan_import(file, base, model, settings)
    print("\n".join(plan.lines()))
    target = output or default_output(file)
    plan.write(target)
    print(f"{target}: written; zar eval --checkpoint {target}")
    return 0


@verb("zar checkpoint export")
def checkpoint_export_command(
    checkpoint: Annotated[str, tyro.conf.Positional],
    output: Path,
    format: Literal["open_clip", "openai"] = "open_clip",
    half: bool = False,
) -> int:
    """Writes what other code reads, and says what its format cannot tell.

    Args:
        checkpoint: A checkpoint file, or an open_clip NAME:TAG.
        output: For open_clip a folder, which describes itself, or a .safetensors file; for OpenAI's layout a
            .safetensors or .pt file.
        format: Whose code shall read it.
        half: Round the weights to half precision.
    """
    from zar_ray.models.exporting import export_checkpoint

    export = export_checkpoint(checkpoint, output, format, half)
    print(f"{export.path}: written; {export.usage}")
    for what in export.lost:
        print(f"  not told by this format: {what}")
    return 0


@verb("zar checkpoint merge")
def checkpoint_merge_command(
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional],
    output: Path,
    alpha: float | None = None,
    pixels_of: str | None = None,
) -> int:
    """Averages checkpoints of one architecture; all parameters alike, the logit scale too.

    Args:
        checkpoints: Two or more checkpoint files or open_clip NAME:TAG.
        output: The .safetensors file to write.
        alpha: Share of the second of two: 0 gives the first, 1 the second (WiSE-FT); by default equal shares.
        pixels_of: The one whose mean, deviation and sizes the result has, where they differ.
    """
    from zar_ray.models.merging import merge_checkpoints

    if alpha is not None and len(checkpoints) != 2:
        raise ConfigError(f"zar checkpoint merge: --alpha is for two checkpoints, and {len(checkpoints)} are given")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"--alpha {alpha:g}: give 0 (the first checkpoint) to 1 (the second)")
    merge_checkpoints(checkpoints, None if alpha is None else (1 - alpha, alpha), output, pixels_of)
    print(f"{output}: written; zar eval --checkpoint {output}")
    return 0
