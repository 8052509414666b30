"""Write the golden files that are missing or have changed."""

from tests.golden.files import write_all

for path in write_all():
    print(path.name)
