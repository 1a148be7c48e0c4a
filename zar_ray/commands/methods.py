"""`zar methods`: the test-time methods, searchable."""

from __future__ import annotations

from zar_ray.adaptation.catalogue import known_methods
from zar_ray.commands.listing import AsCsv, AsJson, Words, find, show
from zar_ray.commands.parsing import verb


@verb("zar methods")
def methods_command(words: Words = (), as_json: AsJson = False, as_csv: AsCsv = False) -> int:
    """Lists what `--method` can name, with what each needs, updates and costs by default; docs/methods.md has more.

    Methods of installed packages stand at the end, with their package's name.

    Args:
        words: What to look for in the table's cells, such as "cache", "stream" or "CVPR"; all must be there.
        as_json: Print JSON alone.
        as_csv: Print CSV alone.
    """
    everything = known_methods()
    found = find("zar methods", words, everything)
    streams = sum(one.stream != "no" for one in found)
    footer = f"{len(found)} of {len(everything)}; {streams} are streams, or can be: --order says how videos come."
    show([one.cells for one in found], footer, as_json=as_json, as_csv=as_csv)
    return 0
