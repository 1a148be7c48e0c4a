"""The method is plain PyTorch and NumPy: it loads where there is neither Ray nor MLflow."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Blocker())
loaded = []
for package in ("video", "models", "adaptation", "parity"):
    package = importlib.import_module(f"zar_ray.{package}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        loaded.append(module.name)
assert not {"ray", "mlflow"} & set(sys.modules)
print(len(loaded))
"""


@pytest.mark.process
def test_the_method_loads_without_ray_and_mlflow():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
