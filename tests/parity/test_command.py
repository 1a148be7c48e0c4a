"""`zar checkpoint parity`."""

from zar_ray.commands.main import main


def test_exit_status_says_whether_all_is_well(make_fixture, change, capsys):
    folder = make_fixture("zar_step")
    assert main(["checkpoint", "parity", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 43
    assert all(line.endswith("ok") for line in lines)

    def perturb(arrays):
        arrays["p0.8/ctx_step2"] += 2e-4

    change(folder, arrays=perturb)
    assert main(["checkpoint", "parity", str(folder)]) == 1
    (miss,) = (line for line in capsys.readouterr().out.splitlines() if not line.endswith("ok"))
    assert miss.startswith("zar_step/p0.8/ctx_step2 ")
    assert miss.endswith("MISS")


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["checkpoint", "parity", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("zar: ")
    assert captured.err.count("\n") == 1
