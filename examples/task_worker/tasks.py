"""A Celery task that broadcasts its progress. Celery's queue is a folder here, not a server."""

import os
import time
from pathlib import Path

from celery import Celery

from django_sockets.broadcaster import Broadcaster

QUEUE = Path(os.environ.get("TASK_QUEUE", Path(__file__).with_name("queue")))
STEPS = 5

app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": QUEUE / "messages",
    "data_folder_out": QUEUE / "messages",
    "control_folder": QUEUE / "control",
    "processed_folder": QUEUE / "processed",
}
for folder in app.conf.broker_transport_options.values():
    folder.mkdir(parents=True, exist_ok=True)


@app.task(ignore_result=True)
def build_report(name: str) -> None:
    progress = Broadcaster()  # Creating one is cheap: all of a process share one hub.
    for step in range(1, STEPS + 1):
        time.sleep(0.2)  # This stands for the work.
        progress.broadcast(f"report:{name}", {"step": step, "of": STEPS})
