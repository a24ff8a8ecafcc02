"""The API increments the counter, and broadcasts the value after the commit."""

from django.db import transaction
from django.db.models import F
from django.shortcuts import render
from rest_framework.response import Response
from rest_framework.views import APIView

from django_sockets.integration import broadcast_on_commit

from .models import Counter
from .sockets import CHANNEL


class CountView(APIView):
    @transaction.atomic
    def post(self, request):
        Counter.objects.get_or_create(name="demo")
        Counter.objects.filter(name="demo").update(value=F("value") + 1)
        value = Counter.objects.get(name="demo").value
        broadcast_on_commit(CHANNEL, {"value": value, "by": request.user.username})
        return Response({"value": value})


def page(request):
    return render(request, "counter/page.html")
