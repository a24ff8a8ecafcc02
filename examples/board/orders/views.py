"""The page of the board, its state for a page that has missed something, and new tokens."""

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache

from django_sockets.signed_channels import channel_token, position

from .channels import channel_of_page
from .models import Order

SHOWN = 100


def orders_of(user):
    orders = Order.objects.select_related("customer").order_by("-pk")
    if not user.is_staff:
        orders = orders.filter(customer=user)
    return [order.as_data() for order in orders[:SHOWN]]


@never_cache
@login_required
def board(request):
    channel = channel_of_page(request.user)
    # The position comes before the query. A change between the two then comes twice, and the page
    # ignores the second one. The other way round, it would be lost.
    since = position([channel])
    context = {"orders": orders_of(request.user), "channel": channel, "since": since}
    return render(request, "orders/board.html", context)


@never_cache
def state(request):
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    return JsonResponse({"orders": orders_of(request.user)})


@never_cache
def token(request):
    """The page asks for the next token before the present one expires."""
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    channel = channel_of_page(request.user)
    text = channel_token(channel, user=request.user, presence=request.user.is_staff)
    return HttpResponse(text, content_type="text/plain")
