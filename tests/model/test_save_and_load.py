"""A model folder is a standard one: transformers opens ours, and we open transformers'."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.loading import load
from model.reading import INDEX_FILE, WEIGHTS_FILE, load_model
from model.saving import save_model
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.tiny import (
    ATTENTION,
    CORPUS,
    chat_config,
    edit_json,
    lively,
    lively_transformer,
    random_ids,
    run_python,
    tiny_config,
    write_folder,
)

TOLERANCE = 1e-4


def logits_of(model: Transformer | PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        result = model(ids)
    return result if isinstance(result, Tensor) else result.logits


def assert_alike(ours: Transformer, theirs: PreTrainedModel) -> None:
    vocab_size, seq_len = ours.config.vocab_size, ours.config.seq_len
    ids = random_ids(2, seq_len, vocab_size)
    expected = logits_of(theirs, ids)
    assert expected.std() > 0.1  # a flat model would hide differences
    torch.testing.assert_close(logits_of(ours, ids), expected, atol=TOLERANCE, rtol=0)


# --- our folders, opened by transformers


@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize("rope_theta", [10_000.0, 333.0])
def test_transformers_computes_our_logits(
    tmp_path: Path,
    tokenizer: ChatTokenizer,
    tokenizer_folder: Path,
    kv_heads: int,
    tie_embeddings: bool,
    qk_norm: bool,
    rope_theta: float,
) -> None:
    config = chat_config(
        tokenizer,
        kv_heads=kv_heads,
        tie_embeddings=tie_embeddings,
        qk_norm=qk_norm,
        rope_theta=rope_theta,
        dropout=0.3,
    )
    model = lively_transformer(**vars(config))
    folder = write_folder(tmp_path, model, tokenizer_folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, Qwen3ForCausalLM if qk_norm else LlamaForCausalLM)
    assert theirs.dtype == torch.float32
    assert theirs.num_parameters() == model.num_parameters()
    assert_alike(model, theirs)
    assert theirs.generation_config.eos_token_id == tokenizer.end_id

    opened = load_model(folder)
    ids = random_ids(1, 9)
    assert torch.equal(logits_of(opened, ids), logits_of(model, ids))


def test_a_saved_folder_holds_the_files_of_hugging_face_and_no_others(
    tmp_path: Path, tokenizer: ChatTokenizer, tokenizer_folder: Path
) -> None:
    model = lively_transformer(**vars(chat_config(tokenizer)))
    folder = write_folder(tmp_path / "models" / "chat", model, tokenizer_folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a mapping
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}  # noqa: SIM118


def test_saving_gives_the_same_bytes_in_every_process(
    tmp_path: Path, tokenizer: ChatTokenizer, tokenizer_folder: Path
) -> None:
    script = f"""
import torch
from pathlib import Path
from model import ChatTokenizer, ModelConfig, Transformer, save_model
torch.set_num_threads(1)
torch.manual_seed(3)
source = Path({str(tokenizer_folder)!r})
model = Transformer(ModelConfig(**{vars(chat_config(tokenizer))!r}))
state = dict(reversed(model.state_dict().items()))
save_model(Path({str(tmp_path / "other")!r}), model.config, state, source,
           ChatTokenizer.load(source).sha256)
"""
    run_python(script, PYTHONHASHSEED="99")
    torch.manual_seed(3)
    here = write_folder(tmp_path / "here", Transformer(chat_config(tokenizer)), tokenizer_folder)
    for path in here.iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_saving_again_replaces_what_was_there(
    tmp_path: Path, tokenizer: ChatTokenizer, tokenizer_folder: Path
) -> None:
    config = chat_config(tokenizer)
    write_folder(tmp_path, lively_transformer(seed=1, **vars(config)), tokenizer_folder)
    newer = lively_transformer(seed=2, **vars(config))
    write_folder(tmp_path, newer, tokenizer_folder)
    ids = random_ids(1, 5)
    assert torch.equal(logits_of(load_model(tmp_path), ids), logits_of(newer, ids))


def test_half_precision_weights_are_saved_in_full_precision(
    tmp_path: Path, tokenizer: ChatTokenizer, tokenizer_folder: Path
) -> None:
    model = lively_transformer(**vars(chat_config(tokenizer))).bfloat16()
    folder = write_folder(tmp_path, model, tokenizer_folder)
    opened = load_model(folder)
    for name, weight in opened.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, model.state_dict()[name].float())


# --- transformers' folders, opened by us


def peer(qwen3: bool = False, **changes: Any) -> PreTrainedModel:
    """A model that transformers made from a config of its own."""
    values = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 24,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    values.update(changes)
    if qwen3:
        return lively(Qwen3ForCausalLM(Qwen3Config(**values)))
    return lively(LlamaForCausalLM(LlamaConfig(**values)))


@pytest.mark.parametrize("qwen3", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": None},
        {"tie_word_embeddings": True},
        {"head_dim": 16},
        {"head_dim": 6},
        {"rope_parameters": None},
        {"rms_norm_eps": 1e-3},
        {"eos_token_id": [2, 5]},
        {"pad_token_id": 0},
    ],
    ids=str,
)
def test_a_folder_that_transformers_wrote_gives_its_logits(
    tmp_path: Path, qwen3: bool, changes: dict[str, Any]
) -> None:
    theirs = peer(qwen3, **changes)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.qk_norm == qwen3
    assert ours.config.end_id == 2
    assert_alike(ours, theirs)


def test_a_sharded_folder_is_opened_whole(tmp_path: Path) -> None:
    theirs = peer()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX_FILE).is_file()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_alike(load_model(tmp_path), theirs)
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_opened_in_full_precision(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    peer().to(dtype).save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert {weight.dtype for weight in ours.state_dict().values()} == {torch.float32}
    assert_alike(ours, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_the_older_form_of_rope_theta_is_read(tmp_path: Path) -> None:
    theirs = peer()
    theirs.save_pretrained(tmp_path)

    def older(config: dict[str, Any]) -> None:
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["rope_scaling"] = None

    edit_json(tmp_path / "config.json", older)
    assert_alike(load_model(tmp_path), theirs)


@pytest.mark.parametrize(
    "keys",
    [
        {"pretraining_tp": 2},
        {"layer_types": ["full_attention", "full_attention"]},
        {"dtype": "bfloat16"},
        {"eos_token_id": []},
        {"pad_token_id": -1},
        {"quantization_config": None},
        {"partial_rotary_factor": 1.0},
        {"sliding_window": 4, "max_window_layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("qwen3", [False, True], ids=["llama", "qwen3"])
def test_keys_that_change_nothing_are_passed_over(
    tmp_path: Path, qwen3: bool, keys: dict[str, Any]
) -> None:
    theirs = peer(qwen3)
    theirs.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda config: config.update(keys))
    ours = load_model(tmp_path)
    assert_alike(ours, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert_alike(ours, theirs)


def test_a_qwen3_config_that_names_no_head_dim_means_128(tmp_path: Path) -> None:
    peer(True, head_dim=128).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda config: config.pop("head_dim"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_alike(load_model(tmp_path), theirs)


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_a_model_with_biases_is_refused_by_the_key(tmp_path: Path, key: str) -> None:
    peer(**{key: True}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{key} is set: this network has no such part"):
        load_model(tmp_path)


def test_weights_of_eight_bits_are_refused_by_name(tmp_path: Path) -> None:
    peer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    weights[K] = weights[K].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_proj\.weight is torch\.float8"):
        load_model(tmp_path)


def test_weights_that_hold_the_rotary_table_are_opened(tmp_path: Path) -> None:
    theirs = peer()
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    assert_alike(load_model(tmp_path), theirs)


# --- what opening does to the process and the network


@pytest.fixture(scope="module")
def chat_folder(
    tokenizer: ChatTokenizer, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An untied model folder of our own; not to be changed."""
    model = lively_transformer(**vars(chat_config(tokenizer, tie_embeddings=False)))
    return write_folder(tmp_path_factory.mktemp("chat"), model, tokenizer_folder)


def test_opening_draws_nothing_from_the_global_generator(chat_folder: Path) -> None:
    before = torch.get_rng_state()
    load_model(chat_folder)
    load(chat_folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_opened_model_is_in_evaluation_mode_trainable_and_complete(chat_folder: Path) -> None:
    model = load_model(str(chat_folder))
    assert not any(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model.config.dropout == 0


def test_an_opened_tied_model_is_still_tied(tmp_path: Path) -> None:
    peer(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.head.weight is model.embedding.weight


# --- refusals


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("use_sliding_window", True),
        ("hidden_act", "gelu"),
        ("rope_scaling", LINEAR),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_parameters", {**LINEAR, "rope_theta": 10_000.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 10_000.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("model_type", "mistral"),
        ("model_type", "qwen2"),
        ("model_type", None),
        ("head_dim", 7),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("partial_rotary_factor", 0.5),
        ("rope_parameters", [10_000.0]),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "high"}),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 0),
        ("model_type", "gpt2"),
        ("model_type", "qwen3_moe"),
        ("num_key_value_heads", 3),
        ("num_hidden_layers", 0),
        ("hidden_size", "wide"),
        ("vocab_size", None),
    ],
    ids=str,
)
def test_an_architecture_that_differs_is_refused_by_the_name_of_the_key(
    chat_folder: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    edit_json(folder / "config.json", lambda config: config.update({key: value}))
    named = {
        "rope_scaling": "rope_type",
        "rope_parameters": "rope_type|partial_rotary_factor|rope_parameters|rope_theta",
        "num_key_value_heads": "kv_heads",
        "num_hidden_layers": "num_layers",
        "hidden_size": "d_model|hidden_size",
    }.get(key, key)
    with pytest.raises(ValueError, match=named) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"'{folder}': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ],
)
def test_a_config_without_a_key_is_refused_by_its_name(
    chat_folder: Path, tmp_path: Path, key: str
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    edit_json(folder / "config.json", lambda config: config.pop(key))
    with pytest.raises(ValueError, match=f"config.json has no '{key}'"):
        load_model(folder)


Q, K, V = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv")
Weights = dict[str, Tensor]


def moved_rows(weights: Weights) -> None:
    # The fused matrix would have the right number of rows all the same.
    rows = torch.cat([weights[name] for name in (Q, K, V)])
    weights[Q], weights[K], weights[V] = (part.clone() for part in rows.split([24, 24, 16]))


@pytest.mark.parametrize(
    ("named", "edit"),
    [
        ("model.norm.weight", lambda w: w.pop("model.norm.weight")),
        ("model.embed_tokens.weight", lambda w: w.pop("model.embed_tokens.weight")),
        ("lm_head.weight", lambda w: w.pop("lm_head.weight")),
        (K, lambda w: w.pop(K)),
        ("q_proj.bias", lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": w[Q][0] + 0})),
        ("layers.2", lambda w: w.update({"model.layers.2.mlp.up_proj.weight": w[Q] + 0})),
        ("q_norm", lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})),
        ("model.norm.weight", lambda w: w.update({"model.norm.weight": torch.ones(31)})),
        ("model.norm.weight", lambda w: w.update({"model.norm.weight": torch.tensor(1.0)})),
        ("lm_head.weight", lambda w: w.update({"lm_head.weight": torch.ones(97, 32)})),
        (K, lambda w: w.update({K: torch.ones(16, 31)})),
        (V, lambda w: w.update({V: torch.ones(16)})),
        (Q, lambda w: w.update({Q: torch.ones(33, 32)})),
        (Q, moved_rows),
        ("gate_proj", lambda w: w.update({"model.layers.0.mlp.gate_proj.weight": w[Q] + 0})),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    chat_folder: Path, tmp_path: Path, named: str, edit: Callable[[Weights], object]
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    weights = load_file(folder / WEIGHTS_FILE)
    edit(weights)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=named):
        load_model(folder)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 5_000, -1])
def test_cut_weights_are_a_value_error(chat_folder: Path, tmp_path: Path, size: int) -> None:
    folder = copy_of(chat_folder, tmp_path)
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"x" * 500, b"\xff" * 500, b"\x10" + b"\0" * 400])
def test_garbage_for_weights_is_a_value_error(
    chat_folder: Path, tmp_path: Path, content: bytes
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX_FILE])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"', b"{}"])
def test_a_damaged_json_file_is_a_value_error(
    chat_folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}|model_type"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS_FILE, "tokenizer.json"])
def test_a_missing_file_is_file_not_found(chat_folder: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(chat_folder, tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name}"):
        load(folder)


# --- a model and its tokenizer


def test_load_gives_the_model_and_its_tokenizer(
    chat_folder: Path, tokenizer: ChatTokenizer
) -> None:
    model, opened = load(chat_folder)
    config = json.loads((chat_folder / "config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_sha256"] == opened.sha256 == tokenizer.sha256
    assert model.config.vocab_size == opened.vocab_size
    assert (model.config.bos_id, model.config.end_id, model.config.pad_id) == (
        opened.bos_id,
        opened.end_id,
        opened.pad_id,
    )


def test_a_tokenizer_that_the_model_was_not_trained_with_is_refused(
    chat_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    other = ChatTokenizer.train(iter([*CORPUS, "zzzz zzzz zzzz zzzz"]), 320)
    other.save(folder)
    with pytest.raises(ValueError, match="not the one that the model was trained with"):
        load(folder)
    assert load_model(folder).config.vocab_size == 320


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["merges"].pop(),
        lambda content: content["normalizer"]["normalizers"].pop(),
        lambda content: content["pre_tokenizer"].update(add_prefix_space=True),
    ],
)
def test_a_tokenizer_that_gives_other_ids_is_refused(
    chat_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    folder = copy_of(chat_folder, tmp_path)
    edit_json(folder / "tokenizer.json", change)
    with pytest.raises(ValueError, match="not the one that the model was trained with"):
        load(folder)


def test_what_transformers_saves_anew_opens_again(
    chat_folder: Path, tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    """As after a fine-tuning there: the same tokenizer in other bytes."""
    AutoModelForCausalLM.from_pretrained(chat_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(chat_folder).save_pretrained(tmp_path)
    model, opened = load(tmp_path)
    assert opened.sha256 != tokenizer.sha256
    assert opened.encode("hello <|user|> there") == tokenizer.encode("hello <|user|> there")
    ids = random_ids(2, 8, model.config.vocab_size)
    assert torch.equal(logits_of(model, ids), logits_of(load(chat_folder)[0], ids))


def test_a_foreign_tokenizer_is_refused_with_a_way_out(chat_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(chat_folder, tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|end|>", "</s>"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no control token <\|end\|>.*load_model opens"):
        load(folder)


@pytest.fixture
def unhashed(tokenizer_folder: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Makes a folder of transformers', with our tokenizer but no hash of it in config.json."""

    def make(vocab_size: int) -> Path:
        peer(vocab_size=vocab_size).save_pretrained(tmp_path)
        return copy_of(tokenizer_folder, tmp_path)

    return make


def test_a_folder_without_a_hash_is_opened_if_the_ids_fit(
    unhashed: Callable[[int], Path],
) -> None:
    model, tokenizer = load(unhashed(384))
    assert (model.config.vocab_size, tokenizer.vocab_size) == (384, 320)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    unhashed: Callable[[int], Path],
) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 320 ids, the model 319"):
        load(unhashed(319))


def test_save_model_writes_the_hash_that_it_is_given(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = Transformer(tiny_config(vocab_size=320))
    save_model(tmp_path, model.config, model.state_dict(), tokenizer_folder, "0" * 64)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_sha256"] == "0" * 64
