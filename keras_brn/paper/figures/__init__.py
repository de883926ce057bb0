"""Pictures of runs. Each function draws into axes, or a figure, that it is given."""

from keras_brn.paper.figures.choices import plot_alpha_and_ramp as plot_alpha_and_ramp
from keras_brn.paper.figures.choices import plot_group_sizes as plot_group_sizes
from keras_brn.paper.figures.curves import mark_crossing as mark_crossing
from keras_brn.paper.figures.curves import mark_highest as mark_highest
from keras_brn.paper.figures.curves import plot_curves as plot_curves
from keras_brn.paper.figures.curves import plot_final_accuracy as plot_final_accuracy
from keras_brn.paper.figures.curves import plot_images_per_label as plot_images_per_label
from keras_brn.paper.figures.curves import plot_training_accuracy as plot_training_accuracy
from keras_brn.paper.figures.methods import draw_methods as draw_methods
from keras_brn.paper.figures.pages import plot_comparison as plot_comparison
from keras_brn.paper.figures.pages import plot_few_labels as plot_few_labels
from keras_brn.paper.figures.pages import plot_paper_length as plot_paper_length
