"""What setup.cfg cannot express: configs are packaged, with a .pth file that Python runs at startup."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copy ``configs/`` into the package and ``smartclip_det.pth`` next to it (see docs/operators.md).

    An editable install uses the configs in the repository; tools/setup_env.sh copies the .pth file.
    """

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "smartclip_det/configs"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy("smartclip_det/operators/smartclip_det.pth", self.build_lib)


setup(cmdclass={"build_py": BuildWithConfigs})
