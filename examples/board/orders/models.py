"""An order, and the form in which pages get it."""

import uuid

from django.conf import settings
from django.db import models


class Status(models.TextChoices):
    NEW = "new", "New"
    BAKING = "baking", "In the oven"
    READY = "ready", "Ready"
    DONE = "done", "Collected"
    CANCELLED = "cancelled", "Cancelled"


NEXT = {Status.NEW: Status.BAKING, Status.BAKING: Status.READY, Status.READY: Status.DONE}


class Order(models.Model):
    reference = models.UUIDField(unique=True, default=uuid.uuid4)
    """Chosen by the page, so that an order that is sent twice is made once."""
    customer = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    item = models.CharField(max_length=40)
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.NEW)
    version = models.PositiveIntegerField(default=1)
    """Increases with each change. A page ignores what is not newer than what it shows."""

    def as_data(self):
        return {
            "id": self.pk,
            "customer": self.customer.get_username(),
            "item": self.item,
            "status": self.status,
            "version": self.version,
        }
