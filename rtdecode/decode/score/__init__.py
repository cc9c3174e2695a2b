"""How well what a brain predicts fits what may have been shown, and how sure that is."""
