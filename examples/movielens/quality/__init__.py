"""What UG-Sep costs in quality: trainings, their table and its page."""

__all__: list[str] = []
