"""Display: charts and pages."""
