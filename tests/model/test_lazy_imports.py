"""``import model`` costs nothing, and its names are what they seem."""

from pathlib import Path

import pytest

import model
from model.tokenizer import ChatTokenizer
from tests.model.tiny import lively_transformer, run_python, write_folder

HEAVY = ("torch", "tokenizers", "numpy", "safetensors", "transformers", "jinja2")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import model", HEAVY),
        ("import model.template, model.config", HEAVY),
        ("from model import ModelConfig", HEAVY),
        ("from model import ChatTokenizer", ("torch", "safetensors", "transformers")),
        ("from model import Transformer", ("tokenizers", "safetensors", "transformers")),
    ],
)
def test_a_name_imports_no_library_that_it_does_without(
    statement: str, absent: tuple[str, ...]
) -> None:
    loaded = run_python(f"import sys; {statement}; print(*sys.modules)").split()
    assert "model" in loaded
    assert not set(absent) & set(loaded)


def test_opening_a_model_imports_no_compiler_and_draws_nothing(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = lively_transformer(vocab_size=ChatTokenizer.load(tokenizer_folder).vocab_size)
    folder = write_folder(tmp_path / "model", model, tokenizer_folder)
    script = f"""
import sys, torch
from model.engine import Engine
before = torch.get_rng_state()
Engine.open({str(folder)!r}, native=False)
assert torch.equal(torch.get_rng_state(), before)
print(*sys.modules)
"""
    assert not {"torch._dynamo", "sympy"} & set(run_python(script).split())


@pytest.mark.parametrize("name", model.__all__)
def test_every_public_name_resolves_to_the_thing_of_that_name(name: str) -> None:
    value = getattr(model, name)
    assert callable(value)
    assert value.__name__ == name


def test_star_import_gives_all_names() -> None:
    names: dict[str, object] = {}
    exec("from model import *", names)
    assert set(model.__all__) <= set(names)


def test_every_name_stays_the_function_whatever_is_imported_before() -> None:
    # Importing a submodule puts it into the package under its own name: a module `model.load`
    # would hide the function `load`.
    script = """
import pkgutil, sys
import model
first = [f"import model.{each.name}" for each in pkgutil.iter_modules(model.__path__)]
first += [f"from model import {name}" for name in model.__all__]
for statement in first:
    for name in [name for name in sys.modules if name.split(".")[0] == "model"]:
        del sys.modules[name]
    exec(statement)
    import model
    for name in model.__all__:
        exec(f"from model import {name} as value")
        assert callable(value) and value.__name__ == name, (statement, name, value)
print(len(first))
"""
    assert int(run_python(script)) > len(model.__all__)


def test_an_unknown_attribute_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'model' has no attribute 'generate_without_cache'"):
        _ = model.generate_without_cache
    assert not hasattr(model, "__wrapped__")
