"""Plan, search, fine-tune, report, export and load, with rows that are in memory.

python examples/from_python.py path/to/model runs/from-python
"""

import sys

from datasets import Dataset

from qra_search import plan


def rows() -> Dataset:
    """Sums with their answers: rows as anybody has them."""
    pairs = [(a, b) for a in range(30) for b in range(30)]
    return Dataset.from_list([{"prompt": f"{a} plus {b} is", "answer": f"{a + b}."} for a, b in pairs])


def main(folder: str, out: str) -> None:
    run = plan(
        folder,
        rows(),
        memory="75%",
        out=out,
        config={"evaluation": {"steps": 3}, "finetune": {"steps": 6, "test_rows": 16}},
    )
    print(run)  # what is predicted

    run.search(evaluations=3)  # optional: check the plan by short fine-tunings
    print(run.result.best())

    tuned = run.finetune()  # and the best uniform plan of no more bytes
    print(tuned)

    print(run.report())
    print(run.export("merged").path)
    tuned_model, tokenizer = run.load()
    inputs = tokenizer("3 plus 4 is", return_tensors="pt")
    print(tokenizer.decode(tuned_model.generate(**inputs, max_new_tokens=3)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
