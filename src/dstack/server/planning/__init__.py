"""Pure: requirements x offers x fleets to a ranked plan."""
