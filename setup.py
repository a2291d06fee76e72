"Builds the package from settings.ini, the file that nbdev reads too."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
words = lambda key: settings.get(key, "").split()
readme = here / "README.md"
minimum = settings["min_python"]
minors = range(int(minimum.split(".")[1]), 13)  # up to 3.12, the newest that is tested
stages = "1 - Planning,2 - Pre-Alpha,3 - Alpha,4 - Beta,5 - Production/Stable,6 - Mature,7 - Inactive".split(",")

setup(
    name=settings["lib_name"], version=settings["version"], description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else settings["description"],
    long_description_content_type="text/markdown",
    author=settings["author"], author_email=settings["author_email"], url=settings["git_url"],
    keywords=words("keywords"), license="Apache-2.0", license_files=["LICENSE"],
    classifiers=["Development Status :: " + stages[int(settings["status"])], "Intended Audience :: " + settings["audience"],
                 "Natural Language :: " + settings["language"]] + [f"Programming Language :: Python :: 3.{m}" for m in minors],
    packages=find_packages(include=[settings["lib_name"], settings["lib_name"] + ".*"]),
    package_data={settings["lib_name"]: words("package_data")},
    python_requires=">=" + minimum, install_requires=words("requirements"),
    extras_require={"dev": words("dev_requirements"), "gemma3": words("gemma3_requirements"), "lora": words("lora_requirements")},
    entry_points={"console_scripts": words("console_scripts")}, zip_safe=False,
)
