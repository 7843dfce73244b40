"""A policy read over a data set: which reference and β it is read with, and the tables that come of it."""
