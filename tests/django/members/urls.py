from django.contrib.auth import logout
from django.http import HttpResponse
from django.urls import path


def leave(request):
    logout(request)
    return HttpResponse("bye")


urlpatterns = [path("leave/", leave)]
