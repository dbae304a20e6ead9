"""Let a torchvision built for CUDA be imported beside a torch built for the CPU.

vLLM's CPU build requires torchvision, and the wheel on PyPI is a CUDA build. Beside a CPU torch its
C library does not load, so the operators `torchvision::nms` and `torchvision::qnms` are missing
when its Python part registers shape functions for them: `import torchvision` dies, and with it
`import vllm` and most of transformers. Defining the two operator *schemas* first is enough; nothing
here calls the operators, and torchvision still refuses to run them in plain words.

It has to work in every process, vLLM's model-inspection subprocess included, so it rides on
interpreter start: `python -m cluster.torchvision_hook` copies this file into the environment's
site-packages together with a one-line `.pth` file that calls `activate`. That puts one finder on
`sys.meta_path`, which costs nothing until torchvision is imported, and then acts only if torch is a
CPU build and torchvision's own C library does not load.

Only the standard library is imported here, and as little of it as can be: this runs whenever the
environment's Python starts.
"""

import sys

TYPE_CHECKING = False  # spelled out because importing `typing` would slow every interpreter start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType

COPY_NAME = "_quartet_torchvision_hook"
PTH_NAME = "quartet-torchvision.pth"
OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_kept: "list[object]" = []  # a torch.library.Library takes its schemas with it when it is collected


class TorchvisionFinder:
    """A meta path finder that runs `prepare` just before torchvision's own code runs.

    It changes how the module is executed, not how it is found, because transformers asks
    `find_spec("torchvision")` merely to learn whether it is installed: that must not import torch.
    """

    def __init__(self, prepare: "Callable[[Iterable[str]], object] | None" = None) -> None:
        self._prepare = prepare or define_missing_operators

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """The spec that the other finders give for torchvision; None for every other module."""
        if fullname != "torchvision":
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if find is None or _is_ours(finder):
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                self._wrap(spec)
                return spec
        return None

    def _wrap(self, spec: "ModuleSpec") -> None:
        loader = spec.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return
        execute = loader.exec_module
        folders = tuple(spec.submodule_search_locations or ())

        def exec_module(module: "ModuleType") -> None:
            self._prepare(folders)
            execute(module)

        # On the instance, so that the loader keeps its type for inspect and importlib.resources.
        loader.exec_module = exec_module  # type: ignore[method-assign]


def define_missing_operators(folders: "Iterable[str]") -> bool:
    """Define torchvision's operator schemas where its C library cannot; True if it did.

    `folders` is where torchvision's package lies. A CUDA build of torch, or a C library that loads,
    needs nothing.
    """
    try:
        import torch
    except ImportError:
        return False  # torchvision's own `import torch` gives the better message
    if torch.version.cuda is not None or _c_library_loads(folders):
        return False
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(name + SCHEMA)
    _kept.append(library)
    return bool(missing)


def _c_library_loads(folders: "Iterable[str]") -> bool:
    import ctypes
    from pathlib import Path

    for folder in folders:
        for library in sorted(Path(folder).glob("_C*")):
            if library.suffix not in {".so", ".pyd", ".dylib"}:
                continue
            try:
                ctypes.CDLL(str(library))
            except OSError:
                continue
            return True
    return False


def _is_ours(finder: object) -> bool:
    # By name: the installed copy and `cluster.torchvision_hook` are two modules with two classes.
    return type(finder).__name__ == "TorchvisionFinder"


def activate() -> None:
    """Put the finder first on `sys.meta_path`, once. Called by the `.pth` file at every start."""
    if not any(map(_is_ours, sys.meta_path)):
        sys.meta_path.insert(0, TorchvisionFinder())


def install(site_packages: "Path") -> "list[Path]":
    """Copy this file and its `.pth` line into `site_packages`; returns the two files written."""
    from pathlib import Path

    module = site_packages / f"{COPY_NAME}.py"
    pth = site_packages / PTH_NAME
    module.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    pth.write_text(f"import {COPY_NAME}; {COPY_NAME}.activate()\n", encoding="utf-8")
    return [module, pth]


def main() -> int:
    """Install into this interpreter's site-packages; refuses outside a virtual environment."""
    import sysconfig
    from pathlib import Path

    if sys.prefix == sys.base_prefix:
        print("torchvision hook: this is not a virtual environment; nothing installed")
        return 2
    site_packages = Path(sysconfig.get_paths()["purelib"])
    module, _ = install(site_packages)
    print(f"torchvision hook: installed as {module.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
