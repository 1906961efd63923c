"""Labelled data from a user's files: one reader a format, no download code, no pickle."""

from collapsekit.training.readers.labelled import LabelledData as LabelledData
from collapsekit.training.readers.source import read as read
from collapsekit.training.readers.source import read_head as read_head
