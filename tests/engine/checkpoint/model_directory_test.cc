#include "engine/checkpoint/model_directory.h"

#include <doctest/doctest.h>

#include <chrono>
#include <map>

#include "tests/engine/checkpoint/temporary_directory.h"

namespace cpuinfer::checkpoint {
namespace {

namespace fs = std::filesystem;

// A machine with a model in every kind of place.
struct Places : TemporaryDirectory {
  Places() {
    write("system/only-system/config.json", "{}");
    write("system/both/config.json", "{}");
    write("mine/both/config.json", "{}");
    write("mine/no-config/readme", "");
    write("elsewhere/model/config.json", "{}");
    write("aliases/nick.toml", "path = \"../elsewhere/model\"\n");
    write("hub/models--Qwen--Qwen3-30B-A3B/snapshots/abc1/config.json", "{}");
    write("hub/models--Qwen--Qwen3-30B-A3B/snapshots/abc2/config.json", "{}");
    write("hub/models--Qwen--Qwen3-30B-A3B/refs/main", "abc1");
    write("hub/models--Qwen--Half/snapshots/abc/readme", "");
    write("hub/version.txt", "1");
    search.alias_directories = {path() / "no-aliases", path() / "aliases"};
    search.model_directories = {path() / "mine", path() / "system"};
    search.hub_caches = {path() / "hub"};
  }
  std::string found(std::string_view name) const {
    const auto model = find_model(name, search);
    REQUIRE_MESSAGE(model.has_value(), model.error().message);
    return fs::weakly_canonical(*model).lexically_relative(fs::weakly_canonical(path())).string();
  }
  std::string error(std::string_view name, ErrorCode code) const {
    const auto model = find_model(name, search);
    REQUIRE(!model.has_value());
    CHECK(model.error().code == code);
    return model.error().message;
  }
  ModelSearch search;
};

TEST_CASE("each place, in its order") {
  const Places places;
  CHECK(places.found((places.path() / "elsewhere/model").string()) == "elsewhere/model");
  CHECK(places.found((places.path() / "elsewhere").string()) == "elsewhere");  // a path is what its user means
  CHECK(places.found("nick") == "elsewhere/model");
  CHECK(places.found("only-system") == "system/only-system");
  CHECK(places.found("both") == "mine/both");
  CHECK(places.found("Qwen/Qwen3-30B-A3B") == "hub/models--Qwen--Qwen3-30B-A3B/snapshots/abc1");
  CHECK(places.found("Qwen3-30B-A3B") == "hub/models--Qwen--Qwen3-30B-A3B/snapshots/abc1");
  places.write("aliases/both.toml", "path = '" + (places.path() / "elsewhere/model").string() + "'");
  CHECK(places.found("both") == "elsewhere/model");
}

TEST_CASE("hub snapshots") {
  const Places places;
  const fs::path repository = places.path() / "hub/models--Qwen--Qwen3-30B-A3B";
  // Without a usable refs/main the newest snapshot with a config counts.
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(repository / "snapshots/abc1", now - std::chrono::hours(1));
  fs::last_write_time(repository / "snapshots/abc2", now);
  for (const char* revision : {"", "../snapshots/abc1", "gone"}) {
    CAPTURE(revision);
    places.write("hub/models--Qwen--Qwen3-30B-A3B/refs/main", revision);
    CHECK(places.found("Qwen3-30B-A3B").ends_with("abc2"));
  }
  fs::remove_all(repository / "refs");
  CHECK(places.found("Qwen3-30B-A3B").ends_with("abc2"));
  // An interrupted download.
  CHECK(places.error("Qwen/Half", ErrorCode::kNotFound).starts_with("no model \"Qwen/Half\" found."));
  places.write("hub/models--Other--Qwen3-30B-A3B/snapshots/abc/config.json", "{}");
  CHECK(places.error("Qwen3-30B-A3B", ErrorCode::kUsage) ==
        "model \"Qwen3-30B-A3B\" is ambiguous: Other/Qwen3-30B-A3B, Qwen/Qwen3-30B-A3B in " +
            (places.path() / "hub").string() + "; give the whole name");
  CHECK(places.found("Other/Qwen3-30B-A3B") == "hub/models--Other--Qwen3-30B-A3B/snapshots/abc");
}

TEST_CASE("a miss lists the places and close names") {
  const Places places;
  const std::string root = places.path().string();
  CHECK(places.error("only-sistem", ErrorCode::kNotFound) ==
        "no model \"only-sistem\" found. Searched:\n"
        "  only-sistem\n  " +
            root + "/no-aliases/only-sistem.toml\n  " + root + "/aliases/only-sistem.toml\n  " + root +
            "/mine/only-sistem\n  " + root + "/system/only-sistem\n  " + root +
            "/hub/models--*--only-sistem/snapshots\n"
            "Close names: only-system\n"
            "Give the directory of a Hugging Face checkpoint, or set CPUINFER_MODELS to the directory that holds it.");
  CHECK(places.error("qwen3-30b-a3b", ErrorCode::kNotFound).find("\nClose names: Qwen/Qwen3-30B-A3B\n") !=
        std::string::npos);
  CHECK(places.error("qwen3", ErrorCode::kNotFound).find("\nClose names: Qwen/Qwen3-30B-A3B\n") != std::string::npos);
  CHECK(places.error("qwen/qwen3-30b-a3c", ErrorCode::kNotFound).find("\nClose names: Qwen/Qwen3-30B-A3B\n") !=
        std::string::npos);
  CHECK(places.error("nik", ErrorCode::kNotFound).find("\nClose names: nick\n") != std::string::npos);
  CHECK(places.error("zzzzzzzz", ErrorCode::kNotFound).find("Close names") == std::string::npos);
  CHECK(places.error("no-config", ErrorCode::kNotFound).find("Close names") == std::string::npos);
  const std::string path_miss = places.error("/does/not/exist", ErrorCode::kNotFound);
  CHECK(path_miss.starts_with("no model \"/does/not/exist\" found. Searched:\n  /does/not/exist\nGive the directory"));
  CHECK(places.error("../../elsewhere", ErrorCode::kNotFound).starts_with("no model "));
  CHECK(places.error("", ErrorCode::kUsage) == "the model's name is empty");
  CHECK(places.error(std::string_view("a\0b", 3), ErrorCode::kUsage) ==
        "the model's name \"a\\u0000b\" holds a NUL byte");
  CHECK(places.error(std::string(100'000, 'n'), ErrorCode::kNotFound).starts_with("no model \"nnn"));
}

TEST_CASE("alias files") {
  const Places places;
  const std::string file = (places.path() / "aliases/broken.toml").string();
  const auto message = [&](std::string_view contents, ErrorCode code = ErrorCode::kBadInput) {
    places.write("aliases/broken.toml", contents);
    const std::string text = places.error("broken", code);
    REQUIRE(text.starts_with(file + ": "));
    return text.substr(file.size() + 2);
  };
  CHECK(message("\npath = \n").starts_with("line 2: "));
  CHECK(message("") == "expected path = \"DIRECTORY\"");
  CHECK(message("path = \"\"") == "expected path = \"DIRECTORY\"");
  CHECK(message("path = 3") == "expected path = \"DIRECTORY\"");
  CHECK(message("path = \"x\"\nctx = 3\n") == "line 2: unknown key \"ctx\", expected path = \"DIRECTORY\"");
  CHECK(message("path = \"/does/not/exist\"", ErrorCode::kNotFound) ==
        "path leads to /does/not/exist, which is no directory");
  CHECK(message(std::string(70'000, '#')) == "is 68.4 KiB long, expected at most 64.0 KiB");
  CHECK(message("a = " + std::string(50'000, '[')).starts_with("line 1: "));
}

TEST_CASE("the usual places") {
  std::map<std::string, std::string> variables = {{"HOME", "/home/me"}};
  const auto search = [&] {
    return standard_model_search([&](const char* name) -> std::optional<std::string> {
      const auto at = variables.find(name);
      if (at == variables.end()) return std::nullopt;
      return at->second;
    });
  };
  using Paths = std::vector<fs::path>;
  CHECK(search().alias_directories == Paths{"/home/me/.config/cpuinfer/models.d", "/etc/cpuinfer/models.d"});
  CHECK(search().model_directories == Paths{"/var/lib/cpuinfer/models"});
  CHECK(search().hub_caches == Paths{"/home/me/.cache/huggingface/hub"});
  variables["CPUINFER_MODELS"] = "/a:/b b::/c";
  CHECK(search().model_directories == Paths{"/a", "/b b", "/c", "/var/lib/cpuinfer/models"});
  variables["XDG_CACHE_HOME"] = "/cache";
  CHECK(search().hub_caches == Paths{"/cache/huggingface/hub"});
  variables["HF_HOME"] = "/hf";
  CHECK(search().hub_caches == Paths{"/hf/hub"});
  variables["HF_HUB_CACHE"] = "/hub";
  CHECK(search().hub_caches == Paths{"/hub"});
  variables["XDG_CONFIG_HOME"] = "/config";
  CHECK(search().alias_directories == Paths{"/config/cpuinfer/models.d", "/etc/cpuinfer/models.d"});
  variables = {{"CPUINFER_MODELS", ""}};
  CHECK(search().alias_directories == Paths{"/etc/cpuinfer/models.d"});
  CHECK(search().model_directories == Paths{"/var/lib/cpuinfer/models"});
  CHECK(search().hub_caches.empty());
}

}  // namespace
}  // namespace cpuinfer::checkpoint
