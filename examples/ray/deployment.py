"""Replicas of latentdiff on a Ray cluster: `python -m examples.ray.deployment --replicas 2`.

Each replica is one engine with batching between steps. Ray starts more replicas if requests wait, and stops them if
they do not.
"""

import argparse
import time

import ray
from ray import serve

from examples.ray.ingress import Ingress
from examples.ray.worker import Worker
from latentdiff.serving.group import MAX_ROWS


def application(
    model: str | None, replicas: tuple[int, int], cpus: float, gpus: float = 0.0, device: str = "auto"
) -> serve.Application:
    """model: a path that every node has. replicas: minimum and maximum. cpus, gpus: of each replica."""
    worker = serve.deployment(
        Worker,
        name="Worker",
        autoscaling_config={
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_ongoing_requests": MAX_ROWS,  # a full batch
        },
        max_ongoing_requests=4 * MAX_ROWS,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=2,
    )
    ingress = serve.deployment(Ingress, name="Ingress", max_ongoing_requests=1000)
    return ingress.bind(worker.bind(model, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or file; the bundled model if omitted")
    parser.add_argument("--replicas", type=int, default=1, help="least number")
    parser.add_argument("--max-replicas", type=int, default=8)
    parser.add_argument("--cpus", type=float, default=2, help="of each replica")
    parser.add_argument("--gpus", type=float, default=0, help="of each replica")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    ray.init(ignore_reinit_error=True)
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    replicas = options.replicas, max(options.replicas, options.max_replicas)
    serve.run(application(options.model, replicas, options.cpus, options.gpus))
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
