"""Runs and their files, statistics of a few seeds, and tables of these beside the paper's numbers.

`summarize_figure` and its like make summaries of runs; `figure_table` and its like show these.
"""

from keras_brn.paper.results.files import as_results as as_results
from keras_brn.paper.results.files import as_runs as as_runs
from keras_brn.paper.results.files import load_figure as load_figure
from keras_brn.paper.results.files import save_figure as save_figure
from keras_brn.paper.results.runs import runs_by_steps as runs_by_steps
from keras_brn.paper.results.stored import stored_tables as stored_tables
from keras_brn.paper.results.summaries import summarize_figure as summarize_figure
from keras_brn.paper.results.summaries import summarize_group_sizes as summarize_group_sizes
from keras_brn.paper.results.tables import figure_table as figure_table
from keras_brn.paper.results.tables import group_size_table as group_size_table
