"""The URLs of the pages."""

from django.urls import path

from . import views

urlpatterns = [path("", views.page), path("order/<slug:item>/", views.order)]
