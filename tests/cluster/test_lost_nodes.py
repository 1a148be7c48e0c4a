"""Nodes that go while a run is on them: the table is that of an undisturbed run, and the run says what happened.

On real raylets, each on a machine of its own as far as the network goes (`machines`). A draw takes half a minute, so
all but two run by hand, on a machine with nothing else to do: ``pytest -m stress -n0 tests/cluster``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from evaluations import POISON, VIDEOS

pytestmark = pytest.mark.slow

IN_THE_LAST_PASS = -1
LEAVES = 3
DRAWS = 50
# A node killed and one drained; and one killed and one cut from the network while a video kills its process, too.
ALWAYS = (22, 45)


@dataclass(frozen=True)
class Loss:
    """A node that goes.

    Attributes:
        moment: After how many videos, or in the pass that tries lost videos one by one.
        how: ``kill``: all its processes at once; ``cut``: from the network; ``drain``: announced, and killed then.
    """

    moment: int
    how: str


def draw(seed: int) -> tuple[bool, tuple[Loss, ...]]:
    """Whether a video kills its process, and which two nodes go when."""
    rng = random.Random(seed)
    poison = rng.random() < 0.5
    moments = [rng.randrange(IN_THE_LAST_PASS if poison else 0, VIDEOS - 8) for _ in range(2)]
    # Those in the last pass come last.
    moments.sort(key=lambda moment: (moment == IN_THE_LAST_PASS, moment))
    return poison, tuple(Loss(moment, rng.choice(["kill", "cut", "drain"])) for moment in moments)


def lose_nodes(machines, begin, poison: bool, losses: tuple[Loss, ...], name: str, seed: int):
    """Begins an evaluation while nodes go; they have successors."""
    rng = random.Random(seed)
    machines.fill(LEAVES)
    ran = begin(name, poison=poison)
    for loss in losses:
        if loss.moment == IN_THE_LAST_PASS:
            ran.wait_for(lambda: "is tried again alone" in ran.said)
        else:
            ran.wait_for(lambda moment=loss.moment: ran.finished() >= moment or "tried again" in ran.said)
        time.sleep(rng.uniform(0, 1.5))
        node = rng.choice(machines.workers)
        if loss.how == "drain":
            machines.drain(node)
            time.sleep(1)
        node.cut() if loss.how == "cut" and node.namespace else node.kill()
    machines.fill(LEAVES)
    return ran


def check(ran, equal, undisturbed, poison: bool) -> None:
    """All good videos have the rows of the undisturbed run, and the one that kills is the one that failed."""
    assert ran.end() == 0, ran.said
    assert undisturbed.end() == 0, undisturbed.said
    table, expected = ran.folder.results(), undisturbed.folder.results()
    failed = set(table.filter(table["error"].is_valid())["video_id"].to_pylist())
    assert failed == ({POISON} if poison else set()), ran.said
    good = [video not in failed for video in table["video_id"].to_pylist()]
    others = [video not in failed for video in expected["video_id"].to_pylist()]
    equal(table.filter(good), expected.filter(others))


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_two_nodes_go_in_the_middle_of_a_run_that_was_told_to_end_before(machines, begin, undisturbed, equal):
    """SIGTERM ends it as Ctrl-C does; the same command goes on, and a node is killed and another one cut off."""
    machines.fill(LEAVES)
    first = begin("two")
    first.wait_for(lambda: first.finished() >= 3)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM, first.said
    assert first.said.rstrip().endswith("interrupted; what is finished is kept, and the same command continues it")
    assert "Traceback" not in first.said
    assert "SIGTERM" not in first.said
    ran = lose_nodes(machines, begin, False, (Loss(6, "kill"), Loss(12, "cut")), "two", seed=0)
    check(ran, equal, undisturbed, poison=False)
    assert "continuing" in ran.said
    assert ran.said.count(" is gone (") >= 1
    log = ran.folder.storage.read("run.log").decode()
    assert "Terminated" in log
    assert " is gone (" in log


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_a_node_that_goes_in_the_last_pass_takes_no_good_video_along(machines, begin, undisturbed, equal):
    losses = (Loss(4, "drain"), Loss(IN_THE_LAST_PASS, "kill"))
    ran = lose_nodes(machines, begin, True, losses, "last", seed=3)
    check(ran, equal, undisturbed, poison=True)
    assert "is drained: it gets no new work" in ran.said
    log = ran.folder.storage.read("run.log").decode()
    assert f"{POISON}: adapt by " in log
    assert "SYSTEM_ERROR" in log


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed in ALWAYS else pytest.mark.stress) for seed in range(DRAWS)]
)
def test_two_nodes_go_at_any_two_moments(machines, begin, undisturbed, equal, seed):
    poison, losses = draw(seed)
    print(f"on {machines.kind}, seed {seed}: poison {poison}, {losses}")
    ran = lose_nodes(machines, begin, poison, losses, f"draw{seed}", seed)
    check(ran, equal, undisturbed, poison)


JOINED = """
import time
from zar_ray.cluster import connected
with connected("{address}"):
    print("joined", flush=True)
    time.sleep(60)
"""


@pytest.mark.stress
def test_a_head_that_stays_gone_ends_the_process_with_one_line(machines):
    """The last test here: nothing is left of the cluster."""
    joined = subprocess.Popen(
        machines.at_head(sys.executable, "-c", JOINED.format(address=machines.address)),
        env={**machines.environment, "RAY_gcs_rpc_server_reconnect_timeout_s": "10"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert joined.stdout is not None
    assert joined.stdout.readline() == "joined\n"
    os.kill(machines.gcs(), signal.SIGKILL)
    said, _ = joined.communicate(timeout=30)
    assert joined.returncode == 1
    told, last = [line for line in said.splitlines() if line.startswith("zar: ")]
    assert "does not answer; waiting" in told
    assert last.endswith("what is finished is kept, and the same command continues it")
