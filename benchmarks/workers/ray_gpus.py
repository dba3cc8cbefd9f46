"""What each Ray actor sees of the GPUs, on a local Ray that is told of GPUs the machine need not have.

    python benchmarks/workers/ray_gpus.py --gpus 2 --workers 2
    python benchmarks/workers/ray_gpus.py --gpus 2 --workers 4 --gpus-per-worker 0.5

Appends what the actors saw to `results/workers/ray_gpus.jsonl`. It needs the extra `ray`; actors build no model.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
from common import record  # noqa: E402

from qra_search.executors import RayExecutor  # noqa: E402
from qra_search.executors.work import IDENTITY  # noqa: E402
from qra_search.testing.scenarios import ToyEvaluator  # noqa: E402


class Seeing(ToyEvaluator):
    """Describes what its actor sees."""

    def describe(self):
        import ray

        return {
            "ray_gpu_ids": [int(i) for i in ray.get_gpu_ids()],
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "QRA_DEVICE": os.environ.get("QRA_DEVICE"),
            "pid": os.getpid(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, help="that Ray is told of")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus-per-worker", type=float, default=None)
    args = parser.parse_args()
    import ray

    ray.init(num_cpus=args.workers, num_gpus=args.gpus, include_dashboard=False, log_to_driver=False)
    with RayExecutor(Seeing, args.workers, gpus=args.gpus_per_worker) as executor:
        # All at the same time: an idle actor would be asked twice, and the last never made.
        seen = [future.result(120) for future in [executor.ask(IDENTITY) for _ in range(args.workers)]]
    actors = sorted((s["description"] for s in seen), key=lambda d: (d["ray_gpu_ids"], d["pid"]))
    if len({actor.pop("pid") for actor in actors}) != args.workers:
        raise SystemExit("one actor answered twice: ask again")
    for actor in actors:
        print(actor)
    record(
        "ray_gpus", ray=ray.__version__, gpus=args.gpus, workers=args.workers, gpus_per_worker=args.gpus_per_worker,
        actors=actors,
    )  # fmt: skip
    ray.shutdown()


if __name__ == "__main__":
    main()
