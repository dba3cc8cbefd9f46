"""Wrong inputs of every command, each with a part of the line that has to be said; `world` makes what they name.

They are run by `wrong_inputs.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

LAND = "--evaluator landscape --granularity layer --set options.layers=4"
"""A search of a formula."""
TINY = "--model tiny --task arithmetic --memory 75% --out new"
"""A plan or a search of the smallest real model."""
OF_A_TASK = TINY.replace("--model tiny ", "")
OF_A_MODEL = TINY.replace("--task arithmetic ", "")

CASES: tuple[tuple[str, str], ...] = (
    # what is no command
    ("serch", "Did you mean 'search'"),
    ("search --modle tiny", "No such option: --modle"),
    ("search --seed one", "Invalid value for '--seed'"),
    ("show", "Missing argument 'RUN'"),
    ("plans dif land land5", "No such command 'plans'"),
    # models
    (f"plan {OF_A_TASK} --model smolm2", "did you mean smollm2"),
    (f"plan {OF_A_TASK} --model ''", "model.name is '': a text is needed"),
    (f"plan {OF_A_TASK} --model ./none", "no file or folder './none'"),
    (f"plan {OF_A_TASK} --model none.gguf", "no file or folder 'none.gguf'"),
    (f"plan {OF_A_TASK} --model rows.jsonl", "models are folders with safetensors, or GGUF files"),
    (f"plan {OF_A_TASK} --model models/empty", "cannot be loaded"),
    (f"plan {OF_A_TASK} --model models/rubbish", "cannot be loaded"),
    (f"plan {OF_A_TASK} --model models/pickled", "save it again, as safetensors"),
    (f"plan {OF_A_TASK} --model models/weightless", "cannot be loaded"),
    (f"plan {OF_A_TASK} --model models/quantized", "is already quantized"),
    (f"plan {OF_A_TASK} --model models/torn", "file not fully covered"),
    (f"plan {OF_A_TASK} --model models/other", "cannot be loaded"),
    (f"plan {OF_A_TASK} --model models/strange --engine llama.cpp", "lacks 28 tensors"),
    (f"plan {OF_A_TASK} --model text.gguf", "is not a GGUF file"),
    (f"plan {OF_A_TASK} --model nobody/nothing", "the hub does not give it"),
    (f"plan {OF_A_TASK} --model nobody/nothing/at-all", "no file or folder"),
    (f"plan {TINY} --device cuda", "use --device cpu"),
    (
        f"plan {TINY} --device gpu",
        "must be auto, cpu, cuda or cuda:N",
    ),
    (f"plan {TINY} --set model.dtype=int8", "model.dtype is 'int8'"),
    (f"plan {TINY} --set model.dequantized_cache=lots", "model.dequantized_cache is 'lots'"),
    # tasks and data
    ("plan --model tiny --memory 75% --out new", "say with --task what to tune for"),
    (f"plan {OF_A_MODEL} --task arithmatic", "did you mean arithmetic"),
    (f"plan {OF_A_MODEL} --task none.jsonl", "none.jsonl"),
    (f"plan {OF_A_MODEL} --task columns.csv", "name others by --columns"),
    (
        f"plan {OF_A_MODEL} --task columns.csv --columns prompt=quest",
        "no column 'quest' for prompt, only 'q', 'a'",
    ),
    (
        f"plan {OF_A_MODEL} --task columns.csv --columns prompt=q,answer=b",
        "no column 'b' for answer, only 'q', 'a'",
    ),
    (f"plan {OF_A_MODEL} --task columns.csv --columns prompt=q,reply=a", "reply"),
    (f"plan {OF_A_MODEL} --task ragged.csv", "into double quotes"),
    (f"plan {OF_A_MODEL} --task latin1.csv", "is not UTF-8"),
    (f"plan {OF_A_MODEL} --task latin1.jsonl", "is not UTF-8"),
    (f"plan {OF_A_MODEL} --task array.jsonl", "is a JSON array"),
    (f"plan {OF_A_MODEL} --task broken.jsonl", "broken.jsonl, line 2"),
    (f"plan {OF_A_MODEL} --task object.json", "a list of objects is needed"),
    (f"plan {OF_A_MODEL} --task empty.jsonl", "it is empty"),
    (f"plan {OF_A_MODEL} --task empty.csv", "it is empty"),
    (f"plan {OF_A_MODEL} --task few.jsonl", "give at least 8"),
    (f"plan {OF_A_MODEL} --task turns.jsonl", "turns.jsonl, line 1"),
    (f"plan {OF_A_MODEL} --task rubbish.parquet", "cannot be read as a Parquet file"),
    (f"plan {OF_A_MODEL} --task rows.xlsx", "data files end in .jsonl"),
    (f"plan {OF_A_MODEL} --task nobody/nothing", "could not be downloaded"),
    (f"plan {OF_A_MODEL} --task gsm8k --data none", "is not a folder"),
    (f"plan {OF_A_MODEL} --task text --data blank.txt", "has no text"),
    (f"plan {OF_A_MODEL} --task arithmetic --data rows.jsonl", "rows.jsonl"),
    (f"plan {OF_A_MODEL} --task rows.jsonl --data rows.jsonl", "already holds the data"),
    (f"plan {TINY} --set task.options.digitz=3", "digitz"),
    # bits, ranks, backends, engines
    (f"plan {TINY} --bits two", "numbers with commas between"),
    (f"plan {TINY} --bits 2,99", "less than or equal to 16"),
    (f"plan {TINY} --bits 4,4", "distinct"),
    (f"plan {TINY} --ranks ' -4'", "greater than or equal to 0"),
    (f"plan {TINY} --ranks '4;8'", "numbers with commas between"),
    (f"plan {TINY} --granularity heads", "input should be 'auto', 'module'"),
    (f"plan {TINY} --backend ggup", "unknown backend 'ggup'"),
    (f"plan {TINY} --backend two=gguf", "one for each bit-width, such as 2=reference,4=bitsandbytes"),
    (f"plan {TINY} --backend 2=ggup,4=bitsandbytes", "unknown backend 'ggup'"),
    (f"plan {TINY} --engine tgi", "engine is 'tgi': choose one of"),
    (f"plan {TINY} --engine llama.cpp --backend reference", "or leave the field out"),
    (f"plan {TINY} --engine transformers --bits 2,4", "space.bits has 2, but engine transformers has 4, 16"),
    (f"plan {TINY} --set quantization.embeddings=99", "less than or equal to 16"),
    # budgets
    (f"search {LAND} --out new --memory 108", "is below the smallest plan"),
    (f"search {LAND} --out new --memory lots", "108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"),
    (f"search {LAND} --out new --memory 1KiB", "is below the smallest plan"),
    (f"search {LAND} --out new --memory uniform5r8", "its bits are 2, 3, 4, 8"),
    (f"plan {LAND} --out new", "say with --memory"),
    (f"search {LAND} --out new --evaluations 0", "input should be greater than 0"),
    # strategies, evaluators, workers
    (f"search {LAND} --out new --strategy addtive", "did you mean additive"),
    (f"search {LAND} --out new --strategy random --set search.options.popsize=3", "there are none"),
    (f"search {LAND} --out new --strategy nsga2 --set search.options.population=many", "population"),
    ("search --evaluator landscpe --out new", "did you mean landscape"),
    (f"search {LAND} --out new --set options.lairs=4", "did you mean layers"),
    (f"plan {TINY} --set options.layers=4", "there are none"),
    (f"search {LAND} --out new --workers 2 --executor dask", "choose one of process, ray"),
    (f"search {LAND} --out new --executor ray", "give the number of workers with --workers"),
    # configs
    ("search none.yaml", "`qra schema --example` prints one to start from"),
    ("search unyaml.yaml", "cannot be read as YAML: line 1"),
    ("search latin1.yaml", "is not UTF-8"),
    ("search list.yaml", "a mapping of sections is needed"),
    ("search bare.yaml", "such as {name: ...}"),
    ("search typo.yaml", "did you mean steps"),
    ("search code.yaml", "cannot be read as YAML"),
    (f"search {LAND} --set evaluation.steps", "such as training.learning_rate=0.0005"),
    # where runs go
    (f"search {LAND} --out /proc/x", "cannot be written"),
    (f"search {LAND} --out rows.jsonl", "rows.jsonl is a file"),
    (f"search {LAND} --out rows.jsonl/x", "rows.jsonl"),
    (f"search {LAND} --out land", "land holds another run"),
    ("search nowhere", "no config file"),
    ("search empty", "config 'empty' is a folder"),
    # runs
    ("show none", "none is not a run"),
    ("show empty", "holds no trials.jsonl"),
    ("show damaged", "is not a readable trial log"),
    ("show begun", "resume its search with `qra search begun`"),
    ("report none", "none is not a run"),
    ("report land --out rows.jsonl/x.html", "is a file, but a folder is needed"),
    # tuning
    ("finetune none", "none is not a run"),
    ("finetune begun", "has no plan yet"),
    ("finetune land", "evaluator 'landscape' cannot fine-tune"),
    ("finetune unplanned", "has no plan yet"),
    ("finetune tiny --plan none.json", "give a plan.json or a run"),
    ("finetune tiny --plan land/plan.json", "the plan belongs to another search space"),
    ("finetune tiny --plan uniform5r8", "the space has no plan"),
    ("finetune tiny --memory 1KiB", "is below the smallest plan"),
    ("finetune tiny --steps 0", "--steps"),
    ("finetune tiny --steps 3 --epochs 2", "give one of them"),
    ("finetune tiny --set finetune.stepz=3", "did you mean steps"),
    ("finetune tiny --set training.rank=3", "training.rank is not a known field"),
    ("finetune tiny --set model.name=smollm2", "training"),
    ("finetune tiny --against some", "is not one of 'best', 'all', 'shuffled', 'none'"),
    ("finetune tiny --device cuda", "use --device cpu"),
    # what is tuned, elsewhere
    ("export", "Missing argument 'RUN'"),
    ("export tiny --format peft", "run `qra finetune tiny`"),
    ("export tuned --format ggfu", "did you mean gguf"),
    ("export tuned --format peft --option bits", "a name and a value are needed"),
    ("export tuned --format peft --out rows.jsonl", "rows.jsonl already exists"),
    ("export torn --format peft", "quantized.safetensors is not a safetensors file"),
    # plans
    ("show land none.json", "give a plan.json or a run"),
    ("show land torn.json", "torn.json is not JSON"),
    # benchmarks and the rest
    ("bench --task hills", "write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES"),
    ("bench --task additive-4-layer-flat --strategy nsga3", "did you mean nsga2"),
    ("demo --out land", "land holds another run"),
    ("schema extra", "unexpected extra argument"),
)
OF_PLUGINS: tuple[tuple[str, str], ...] = (
    (f"plan {TINY} --backend bitsandbytes --bits 5,6", "has no 5 or 6 bits"),
    (
        f"plan {TINY} --set quantization.backend.name=reference --set quantization.backend.group_sise=64",
        "group_sise",
    ),
    ("export tuned --format merged --option bits=4", "unknown option of format 'merged': 'bits'"),
)
"""What only the class of a plug-in knows, which is of torch: its import is added to what they may take."""


def world(folder: Path, qra: Callable[[str], None]) -> None:
    """Make the runs and files that the cases name; `qra` runs a command in the folder."""
    for name, layers in (("land", 4), ("land5", 5)):
        search = f"search {LAND} --strategy random -n 6 --memory uniform3r8 --set options.layers={layers}"
        qra(f"{search} --out {name}")
    qra("plan --model tiny --task arithmetic --memory 75% --out tiny")
    short = "--set finetune.test_rows=4 --set finetune.sample_answers=0 --against none"
    qra("plan --model tiny --task arithmetic --memory 75% --out tuned")
    qra(f"finetune tuned --steps 1 {short}")
    _runs(folder)
    _models(folder / "models")
    _data(folder)
    for name, text in {
        "unyaml.yaml": "a: [1",
        "list.yaml": "- 1\n",
        "bare.yaml": "model: tiny\n",
        "typo.yaml": "evaluation: {stepz: 3}\n",
        "code.yaml": "!!python/object/apply:os.system ['true']\n",
        "torn.json": '{"format":',
        "list.json": "[1]",
        "text.gguf": "this is text",
        "rows.xlsx": "PK\x03\x04",
    }.items():
        (folder / name).write_text(text)
    (folder / "latin1.yaml").write_bytes("model: {name: café}\n".encode("latin-1"))


def _runs(folder: Path) -> None:
    """Runs that are not begun, not ended, damaged, and of damaged files."""
    for name in ("empty", "damaged", "begun", "unplanned"):
        (folder / name).mkdir()
    (folder / "damaged" / "trials.jsonl").write_bytes(b"not a log" * 50)
    _begun(folder / "land", folder / "begun")
    _begun(folder / "land", folder / "unplanned")
    _torn(folder / "tuned", folder / "torn")


def _begun(source: Path, target: Path) -> None:
    """A run as it stands before its first evaluation, without sensitivities."""
    lines = (source / "trials.jsonl").read_text().splitlines(keepends=True)
    (target / "trials.jsonl").write_text("".join(line for line in lines[:2]))
    (target / "config.yaml").write_text((source / "config.yaml").read_text())


def _torn(source: Path, target: Path) -> None:
    """A tuned run whose weights are damaged."""
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"torn" if file.name == "quantized.safetensors" else file.read_bytes())


def _models(folder: Path) -> None:
    """Model folders of which none can be loaded."""
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 1}
    strange = {**config, "model_type": "gpt_neox"}
    quantized = {**config, "quantization_config": {"quant_method": "gptq"}}
    whole = _tensors(f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))
    for name, described, weights in (
        ("pickled", config, {"pytorch_model.bin": b"pickle"}),
        ("weightless", config, {}),
        ("quantized", quantized, {"model.safetensors": whole}),
        ("strange", strange, {"model.safetensors": whole}),
        ("torn", config, {"model.safetensors": whole[:-30]}),
        ("other", config, {"model.safetensors": _tensors(["encoder.layer.0.weight"])}),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(described))
        for file, data in weights.items():
            (folder / name / file).write_bytes(data)
    (folder / "empty").mkdir()
    (folder / "rubbish").mkdir()
    (folder / "rubbish" / "config.json").write_text("{")


def _tensors(names: object) -> bytes:
    """A safetensors file with a few numbers under each name."""
    header = {
        n: {"dtype": "F32", "shape": [8], "data_offsets": [32 * i, 32 * i + 32]} for i, n in enumerate(names)
    }  # type: ignore[arg-type, var-annotated]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(32 * len(header))


def _data(folder: Path) -> None:
    """Data as people have it, wrong in one thing each."""
    rows = [json.dumps({"prompt": f"{i} + {i} =", "answer": str(2 * i)}) + "\n" for i in range(40)]
    row = rows[0].strip()
    texts = {
        "rows.jsonl": "".join(rows),
        "few.jsonl": "".join(rows[:2]),
        "array.jsonl": f"[{row},\n{row}]\n",
        "broken.jsonl": f'{row}\n{{"prompt": "cut o\n',
        "object.json": row,
        "empty.jsonl": "",
        "empty.csv": "",
        "columns.csv": "q,a\n" + "".join(f"{i},{i}\n" for i in range(40)),
        "ragged.csv": "prompt,answer\n" + "one, two, three\n" * 40,
        "turns.jsonl": json.dumps({"messages": [{"role": "user", "content": "only a question"}]}) + "\n",
        "blank.txt": "\n\n",
        "rubbish.parquet": "PAR1 this is none",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin1.csv").write_bytes("prompt,answer\ncafé,thé\n".encode("latin-1"))
    (folder / "latin1.jsonl").write_bytes(
        json.dumps({"prompt": "café"}, ensure_ascii=False).encode("latin-1")
    )
