"""Labelled data from a user's files: one reader a format, no download code, no pickle."""

from collapsekit.data.coinciding import types_of as types_of
from collapsekit.data.labelled import LabelledData as LabelledData
from collapsekit.data.lists import class_sizes as class_sizes
from collapsekit.data.source import read as read
from collapsekit.data.source import read_head as read_head
