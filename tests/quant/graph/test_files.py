from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from quant.graph.files import staged

_SLOW = """
import sys, time
from pathlib import Path
from quant.graph.files import staged
with staged(Path(sys.argv[1])) as stage:
    (stage / "item.onnx").write_text("half")
    print(stage.name, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                                   cwd=Path(__file__).parents[3])  # fmt: skip
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    killed, dead = start()
    killed.kill()
    killed.communicate()
    assert (tmp_path / dead / "item.onnx").exists()
    living, kept = start()
    try:
        assert [p.name for p in tmp_path.iterdir()] == [kept], "the second run removes what the first left"
        with staged(tmp_path) as stage:
            (stage / "user.onnx").write_text("whole")
        assert {p.name for p in tmp_path.iterdir()} == {kept, "user.onnx"}
    finally:
        living.kill()
        living.communicate()
    with staged(tmp_path) as stage:
        (stage / "user.onnx").write_text("again")
    assert [p.name for p in tmp_path.iterdir()] == ["user.onnx"]
