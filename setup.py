"Builds the package from settings.ini, the file that nbdev reads too."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

STAGES = [
    "1 - Planning",
    "2 - Pre-Alpha",
    "3 - Alpha",
    "4 - Beta",
    "5 - Production/Stable",
    "6 - Mature",
    "7 - Inactive",
]
FOR_ALL = ["figures", "widgets", "cli", "lora"]

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def words(key):
    return settings.get(key, "").split()


def description():
    "The README where there is one: a source tree that is being tested may lack it."
    readme = here / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else settings["description"]


oldest, newest = (int(settings[key].split(".")[1]) for key in ("min_python", "max_python"))
classifiers = [
    f"Development Status :: {STAGES[int(settings['status'])]}",
    f"Intended Audience :: {settings['audience']}",
    f"Natural Language :: {settings['language']}",
    "Typing :: Typed",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(oldest, newest + 1)),
]
extras = {key.removesuffix("_requirements"): words(key) for key in settings if key.endswith("_requirements")}
extras["all"] = [requirement for extra in FOR_ALL for requirement in extras[extra]]
extras["dev"] = [*extras["all"], *extras["dev"]]

setup(
    name=settings["dist_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=description(),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=words("keywords"),
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=classifiers,
    packages=find_packages(include=[settings["lib_name"], settings["lib_name"] + ".*"]),
    package_data={settings["lib_name"]: words("package_data")},
    python_requires=">=" + settings["min_python"],
    install_requires=words("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": words("console_scripts")},
    zip_safe=False,
)
