"""Exit of tools: exit codes, and process groups that are destroyed before Python exits."""

import subprocess
import sys
import textwrap

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.utils.cli import run_tool
from tests.conftest import REPO


def ends(error):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        run_tool(main)
    return left.value.code


def test_exit_codes(capsys):
    for main, code in ((lambda: None, 0), (lambda: 3, 3)):
        with pytest.raises(SystemExit) as left:
            run_tool(main)
        assert left.value.code == code
    assert ends(UserError("No such mode.")) == 2
    assert capsys.readouterr().err == "error: No such mode.\n"
    assert ends(MemoryError()) == 2
    assert "tools/test.py --out pred.safetensors" in capsys.readouterr().err
    assert ends(KeyboardInterrupt()) == 130
    with pytest.raises(RuntimeError, match="a defect"):
        run_tool(lambda: ends(RuntimeError("a defect")))


@pytest.mark.parametrize(("last", "code"), [("return 0", 0), ("raise UserError('No.')", 2)])
def test_the_process_group_is_left_with_all_that_hold_it(tmp_path, last, code):
    script = f"""
        import atexit, weakref, torch
        from torch import distributed
        from smartclip_det.core.errors import UserError
        from smartclip_det.utils.cli import run_tool

        def main():
            distributed.init_process_group("gloo", init_method="file://{tmp_path}/meeting", rank=0, world_size=1)
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
            model.itself = [model]  # as runners and hooks
            atexit.register(told, weakref.ref(model))
            {last}

        def told(model):
            print("left:", not distributed.is_initialized(), model() is None)

        run_tool(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=REPO, timeout=120
    )
    assert (done.returncode, done.stdout) == (code, "left: True True\n"), done.stderr


def test_bad_input_in_a_process_that_loads_data_is_one_line(capsys):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, n):
            raise UserError("The image a.jpg cannot be read.")

    with pytest.raises(SystemExit) as left:
        run_tool(lambda: list(torch.utils.data.DataLoader(Broken(), num_workers=1)) and 0)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: The image a.jpg cannot be read.\n"
