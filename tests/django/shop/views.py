"""The pages: plain `def` views, as under WSGI."""

from django.db import transaction
from django.http import HttpResponse

from .models import Order


def page(request):
    return HttpResponse("the shop")


@transaction.atomic
def order(request, item):
    Order.objects.create(item=item)
    if item == "nothing":
        transaction.set_rollback(True)
    return HttpResponse("ordered")
