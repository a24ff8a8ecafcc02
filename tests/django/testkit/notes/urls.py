from django.http import HttpResponse
from django.urls import path

from notes.models import Note


def page(request):
    return HttpResponse(str(Note.objects.count()))


urlpatterns = [path("", page)]
