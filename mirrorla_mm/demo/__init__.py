"""The data set that ``make quickstart`` draws, and the pictures it shows of the results."""
