"""Options that all methods have in common; light to import, as the methods' own are not."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field, field_serializer

from zar_ray.data.options import PromptOptions
from zar_ray.models.options import ClassPosition, ModelOptions
from zar_ray.options.base import operational, option
from zar_ray.results.certainty import CertaintyScore
from zar_ray.video.options import DecodeOptions, ViewConfig


class SharedOptions(ModelOptions, DecodeOptions, PromptOptions):
    """How a video is turned into a decision, but for what methods say themselves."""

    method: tuple[str, ...] = option(("zero_shot", "zar"), "Test-time methods to run.", min_length=1)
    class_position: ClassPosition = option(
        "end", "Where the class name stands in the prompt: after the context, in its middle or in front."
    )
    seed: int = option(0, "Seed of the view plans.", ge=0)
    views: ViewConfig = Field(default_factory=ViewConfig, description="Views.")
    compile: bool = operational(False, "Compile the image encoder; the first pass of every worker takes longer.")


class PredictOptions(SharedOptions):
    """Options of `zar predict`, but for the methods' own."""

    videos: tyro.conf.Positional[tuple[str, ...]] = operational(
        (),
        "Video files, folders of them, quoted patterns such as 'clips/**/*.mp4', and - for a list on standard input.",
    )
    listed: Annotated[str | None, tyro.conf.arg(name="list")] = operational(
        None, "A file with further such names, one a line."
    )
    labels: str | None = option(None, 'The candidate classes: "a,b,c", a file with one a line, or a benchmark\'s name.')
    method: tuple[str, ...] = option(("zar",), "Test-time methods to run.", min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = option(
        (), "Look with each of these seeds of the view plans, and show the mean and spread of the scores."
    )
    reject_below: float | None = option(
        None,
        "Say that a video shows none of the labels where the decision is less sure than this; `zar report threshold`"
        " finds it from a run.",
    )
    reject_score: CertaintyScore = option("max_probability", "How sure a decision is: the score that counts.")
    top_k: int = operational(5, "How many labels to show a video.", ge=1)
    json_lines: bool = operational(False, "Print one JSON object a video and method instead of tables.")
    csv: str | None = operational(
        None, "Write a row a video and method to this file, with a column a rank, in place of the tables."
    )
    server: str | None = operational(
        None, "URL of a running service that is to do the work, with its model; nothing is loaded here."
    )
    at_once: int = operational(4, "Files that --server is sent at a time; fewer where it is busy.", ge=1)
    token: str | None = operational(None, "The service's bearer token; by default $ZAR_TOKEN, which others cannot see.")

    @field_serializer("token")
    def _hidden_token(self, token: str | None) -> str | None:
        # --show-config prints the options.
        return "***" if token else token
