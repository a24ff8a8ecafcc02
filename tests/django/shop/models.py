"""The model of the shop, and the broadcasts of its changes."""

from django.db import models
from django.db.models.signals import post_save
from django.dispatch import receiver

from django_sockets.integration import broadcast_on_commit


class Order(models.Model):
    item = models.CharField(max_length=50)


@receiver(post_save, sender=Order)
def tell_everybody(sender, instance, **_):
    broadcast_on_commit("orders", {"ordered": instance.item})
