"""The part of the build that pyproject.toml cannot say: a wheel carries configs/ as grafit_jax/configs/."""

import pathlib

import setuptools
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies the config files into a wheel; an editable install finds them in the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib, "grafit_jax", "configs")
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(pathlib.Path("configs").glob("*.py")):
                self.copy_file(str(path), str(target / path.name))


setuptools.setup(cmdclass={"build_py": BuildPy})
