"""Every change of an order: in a transaction, and announced after its commit."""

from django.db import transaction

from django_sockets import RequestError
from django_sockets.integration import broadcast_on_commit

from .channels import channels_of_order
from .models import NEXT, Order, Status


@transaction.atomic
def place(customer, reference, item):
    order, is_new = Order.objects.get_or_create(
        reference=reference, customer=customer, defaults={"item": item}
    )
    if is_new:
        announce(order)
    return order


def advance(order_id, version):
    """The next step in the bakery."""
    order = find(Order.objects.all(), order_id)
    if order.status not in NEXT:
        raise RequestError("finished", "There is no further step.")
    return move(order, version, NEXT[order.status])


def cancel(customer, order_id, version):
    order = find(Order.objects.filter(customer=customer), order_id)
    if order.status != Status.NEW:
        raise RequestError("too_late", "The order is in the oven already.")
    return move(order, version, Status.CANCELLED)


def find(orders, order_id):
    order = orders.select_related("customer").filter(pk=order_id).first()
    if order is None:
        raise RequestError("not_found", "There is no such order.")
    return order


@transaction.atomic
def move(order, version, status):
    """Change the version that the page has shown, and no other."""
    shown = Order.objects.filter(pk=order.pk, version=version)
    if not shown.update(status=status, version=version + 1):
        raise RequestError("conflict", "Somebody else has changed the order in the meantime.")
    order.status, order.version = status, version + 1
    announce(order)
    return order


def announce(order):
    broadcast_on_commit(channels_of_order(order), order.as_data())
