"""The data set that ``make quickstart`` draws, and the figures it shows of the results."""
