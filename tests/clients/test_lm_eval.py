"""lm-evaluation-harness through /v1/completions: the same numbers as from the model itself."""

import json
import os
import subprocess

import pytest
import torch

from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.tokenizer import ModelTokenizer
from tests.clients.conftest import PYTHON, missing
from tests.e2e.conftest import ALLOW_ONLY
from tests.integration.conftest import monitors_for
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.skipif(missing("lm-eval") is not None, reason=str(missing("lm-eval")))

COLOURS = ["green", "blue", "red", "white"]
QUESTIONS = [
    ("Grass is", 0),
    ("The sky by day is", 1),
    ("A ripe tomato is", 2),
    ("Fresh snow is", 3),
    ("A leaf in May is", 0),
    ("Milk is", 3),
]
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
""",
    "said": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: ""
generation_kwargs: {until: ["."], max_gen_toks: 12, temperature: 0.0, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
BACKENDS = {
    "token-ids": ("tokenized_requests=True", 4),
    "texts": ("tokenized_requests=False,num_concurrent=3", 1),
}


@pytest.fixture(scope="module")
def tiny():
    """A model that wants to end a text about as often as not: an end-of-sequence token must not shift the numbers."""
    model = TINY["llama"]()
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 4
    return prepare(model, tiny_tokenizer(), model_id="tiny")


@pytest.fixture
def live(serve, tiny):
    engine = TransformersEngine(tiny, monitors_for(tiny), EngineSettings(max_batch=4))
    policy = ALLOW_ONLY.replace("harm", "cosine")
    return serve(policy, engine=engine, tokenizer=ModelTokenizer(tiny.tokenizer))


@pytest.fixture
def evaluate(live, tmp_path):
    """Run the harness, as from a command line; what it logged of each task's samples."""
    data = tmp_path / "data.jsonl"
    rows = [{"text": text, "choices": COLOURS, "answer": answer} for text, answer in QUESTIONS]
    data.write_text("\n".join(map(json.dumps, rows)))
    for name, task in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{source}{task}")

    def run(requests, batch_size):
        given = f"model=tiny,base_url={live.url}/v1/completions,tokenizer_backend=remote,max_length=128,{requests}"
        command = [PYTHON, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", given]
        command += ["--batch_size", str(batch_size), "--tasks", *TASKS, "--include_path", str(tmp_path)]
        command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(  # noqa: S603  # ours
            command, check=False, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = {name: next((tmp_path / "out").rglob(f"samples_{name}_*.jsonl")) for name in TASKS}
        return {name: list(map(json.loads, path.read_text().splitlines())) for name, path in found.items()}

    return run


class Plain:
    """The model by transformers alone, in float32."""

    def __init__(self, tiny):
        self._model, self._tokenizer = tiny.model, tiny.tokenizer

    def ids(self, text):
        return self._tokenizer(text, add_special_tokens=False).input_ids

    @torch.inference_mode()
    def logprobs(self, ids):
        """[len(ids), vocabulary]: of what follows each id."""
        return self._model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def loglikelihood(self, context, continuation):
        """Of the continuation; and whether it is what greedy decoding would say."""
        ids = context + continuation
        said = self.logprobs(ids)[len(context) - 1 : -1]
        own = said.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        return own.sum().item(), bool((said.argmax(-1) == torch.tensor(continuation)).all())

    def ends_after(self, ids):
        return self.logprobs(ids)[-1].argmax().item() == self._tokenizer.eos_token_id

    @torch.inference_mode()
    def says(self, text, num_tokens):
        ids = torch.tensor([self.ids(text)])
        whole = self._model.generate(ids, do_sample=False, max_new_tokens=num_tokens)[0, ids.shape[1] :]
        return self._tokenizer.decode(whole, skip_special_tokens=True).split(".")[0]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_the_harness_gets_what_the_model_itself_says(evaluate, tiny, backend):
    samples, plain = evaluate(*backend), Plain(tiny)
    assert {name: len(of_task) for name, of_task in samples.items()} == dict.fromkeys(TASKS, len(QUESTIONS))
    ended = set()
    for sample in samples["choice"]:
        expected = []
        for index in range(len(COLOURS)):
            asked = sample["arguments"][f"gen_args_{index}"]
            context, continuation = plain.ids(asked["arg_0"]), plain.ids(asked["arg_1"])
            ended.add(plain.ends_after(context + continuation))
            expected.append(plain.loglikelihood(context, continuation))
            assert as_pair(sample["resps"][index]) == pytest.approx(expected[-1], abs=1e-4)
        best = max(range(len(COLOURS)), key=lambda index: expected[index][0])
        assert sample["acc"] == float(best == sample["doc"]["answer"])
    assert ended == {True, False}
    for sample in samples["rolling"]:
        total, _ = plain.loglikelihood([tiny.tokenizer.bos_token_id], plain.ids(sample["doc"]["text"]))
        assert float(sample["resps"][0][0]) == pytest.approx(total, abs=1e-4)
    for sample in samples["said"]:
        assert sample["resps"][0][0] == plain.says(sample["doc"]["text"], 12)


def as_pair(resps):
    """A log-likelihood and whether it is greedy, which the harness logs as text."""
    (pair,) = resps
    loglikelihood, is_greedy = pair
    return float(loglikelihood), {"True": True, "False": False}[str(is_greedy)]
