"""Pruned models among other libraries: PEFT, the Trainer, pipelines, sentence-transformers, uploads to a hub."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from runs import LABELS, ROOT, finished, make_model, make_tokenizer, tree
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

import skillprune
from skillprune.checkpoint import load_stored, save_pruned
from skillprune.errors import UnsupportedArchitecture
from skillprune.families import by_stack, find_ffns
from skillprune.planning import Costs, PruningPlan
from skillprune.recipe import Form
from skillprune.surgery import prune_

COSTS = Costs(0, 0, 0, 0, 0)
UNEVEN, EVEN = (24, 8, 40), (16, 16, 16)
TEXTS = ["word5 word9 word12", "word7", "word30 word31 word8 word9", "word11 word6"]


def pruned(model: PreTrainedModel, widths: tuple[int, ...] = UNEVEN) -> PreTrainedModel:
    """The model with the first neurons of every layer, as many as ``widths`` say in turn."""
    stacks = by_stack(find_ffns(model))
    keep = {
        name: tuple(tuple(range(widths[ffn.layer % len(widths)])) for ffn in layers) for name, layers in stacks.items()
    }
    before = {name: tuple(ffn.width for ffn in layers) for name, layers in stacks.items()}
    return prune_(model, PruningPlan(keep, before, "test", {}, 1, COSTS, COSTS))


def written(directory: Path, form: Form = "per-layer") -> Path:
    save_pruned(pruned(make_model()), make_tokenizer(), directory, dtype=torch.float32, form=form)
    return directory


def encoded() -> dict[str, Tensor]:
    found = make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(**encoded()).logits
    return found


# PEFT asks transformers 5 by a name that it has since changed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_pruned_model_is_trained_with_lora_merged_and_saved(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForSequenceClassification.from_pretrained(written(tmp_path / "pruned"), dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["query", "intermediate.dense", "output.dense"], task_type="SEQ_CLS"
    )
    adapted = get_peft_model(model, config)
    before = logits(adapted)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        adapted.train()
        adapted(**encoded(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(UnsupportedArchitecture, match="wrapped layers cannot be cut"):
        find_ffns(adapted.get_base_model())
    trained = logits(adapted)
    assert (trained - before).abs().max() > 0.01
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), trained, atol=1e-5, rtol=1e-4)
    save_pruned(merged, make_tokenizer(), tmp_path / "merged", dtype=torch.float32)
    again, record = load_stored(tmp_path / "merged")
    assert record.form == "per-layer" and [ffn.width for ffn in find_ffns(again)] == list(UNEVEN)
    torch.testing.assert_close(logits(again), trained, atol=1e-5, rtol=1e-4)


@pytest.fixture
def accelerate_reset() -> Iterator[None]:
    """The Trainer leaves accelerate set up for the whole process; other tests want it as it was."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("accelerate_reset")
@pytest.mark.parametrize("form", ["per-layer", "padded"])
def test_the_trainer_takes_a_step_and_what_it_saves_is_loaded_and_converted(tmp_path: Path, form: Form) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(written(tmp_path / "pruned", form), dtype=torch.float32)
    rows = [{name: each[0] for name, each in make_tokenizer()([text], return_tensors="pt").items()} for text in TEXTS]
    examples = [
        {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": index % 2}
        for index, row in enumerate(rows)
    ]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    arguments = TrainingArguments(tmp_path / "work", per_device_train_batch_size=4, learning_rate=0.01, **options)
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, processing_class=make_tokenizer())
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    assert not torch.equal(before["classifier.weight"], model.classifier.weight)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained", dtype=torch.float32)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    if form == "per-layer":
        done = skillprune.convert_checkpoint(tmp_path / "trained", tmp_path / "out", form="auto_map")
        assert done.widths == {"encoder": UNEVEN}


@pytest.mark.parametrize("form", ["run", "per-layer", "padded"])
def test_a_pipeline_takes_the_directory(tmp_path: Path, form: Any) -> None:
    directory = finished().output / "model" if form == "run" else written(tmp_path / "model", form)
    classify = pipeline("text-classification", model=str(directory), device="cpu")
    answers = classify(TEXTS, batch_size=2)
    assert {answer["label"] for answer in answers} <= set(LABELS)
    expected = logits(load_stored(directory)[0]).softmax(dim=1).max(dim=1).values
    torch.testing.assert_close(torch.tensor([answer["score"] for answer in answers]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("widths", [(384,), (384, 128, 256)], ids=["even", "uneven"])
def test_sentence_transformers_embeds_with_a_pruned_body(tmp_path: Path, shared: Path, widths: tuple[int, ...]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    location = shared / "models" / "minilm-l6"
    body, tokenizer = AutoModel.from_pretrained(location, dtype=torch.float32), AutoTokenizer.from_pretrained(location)
    save_pruned(pruned(body, widths), tokenizer, tmp_path / "body", dtype=torch.float32)
    assert ("quantization_config" in (tmp_path / "body" / "config.json").read_text()) == (len(widths) > 1)
    texts = ["a fine film", "the soup was cold and the waiter colder"]
    found = sentence_transformers.SentenceTransformer(str(tmp_path / "body"), device="cpu").encode(texts)
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = body.eval()(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(2)
    torch.testing.assert_close(torch.from_numpy(found), (states * mask).sum(1) / mask.sum(1), atol=1e-5, rtol=1e-4)


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload needs; keeps the files of every commit."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        """Who is asking."""
        self._answer({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def do_POST(self) -> None:
        """Makes a repository, says how files are to come, or takes a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self._host}/me/pruned/commit/1", "commitOid": "1", "pullRequestUrl": None})
        else:
            self._answer({"url": f"{self._host}/me/pruned", "name": "me/pruned", "id": "me/pruned"})

    def log_message(self, format: str, *_: Any) -> None:
        """Says nothing."""

    @property
    def _host(self) -> str:
        return f"http://{self.headers['Host']}"

    def _chunks(self) -> bytes:
        """A body that comes in chunks, each behind its length."""
        found = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def _answer(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its address, and the files that were uploaded to it."""
    handler = type("OwnHub", (Hub,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.files
        server.shutdown()


UPLOADS = {
    "push_to_hub": "import skillprune\nfrom transformers import AutoModelForSequenceClassification as Model\n"
    "Model.from_pretrained(sys.argv[1]).push_to_hub('me/pruned')",
    "upload_folder": "from huggingface_hub import upload_folder\n"
    "upload_folder(folder_path=sys.argv[1], repo_id='me/pruned')",
}


@pytest.mark.parametrize("way", UPLOADS)
def test_a_pruned_checkpoint_is_uploaded_whole(way: str, tmp_path: Path, hub: tuple[str, dict[str, bytes]]) -> None:
    address, files = hub
    directory = written(tmp_path / "model")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_of_nobody",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{UPLOADS[way]}", str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if way == "upload_folder":
        assert files == tree(directory)
        return
    assert json.loads(files["config.json"])["quantization_config"]["widths"] == {"encoder": list(UNEVEN)}
    for name, content in files.items():
        (tmp_path / "down" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "down" / name).write_bytes(content)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "down", dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(load_stored(directory)[0]), atol=1e-5, rtol=1e-4)
