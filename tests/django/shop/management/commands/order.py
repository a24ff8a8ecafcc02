"""`manage.py order ITEM`: a command that saves an order and ends."""

from django.core.management import call_command
from django.core.management.base import BaseCommand

from shop.models import Order


class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("item")

    def handle(self, *, item, **_):
        call_command("migrate", run_syncdb=True, verbosity=0)  # The database is in memory.
        Order.objects.create(item=item)
