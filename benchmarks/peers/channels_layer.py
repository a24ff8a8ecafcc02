"""Django settings with one channel layer of channels_redis; BENCH_LAYER names its class."""

import os

from django.conf import settings

settings.configure(
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": os.environ["BENCH_LAYER"],
            "CONFIG": {"hosts": [os.environ["BENCH_BROKER_URL"]], "capacity": 100_000},
        }
    }
)
