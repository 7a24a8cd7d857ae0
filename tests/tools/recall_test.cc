// A question about a fact anywhere in 131,072 tokens, answered by the demo model, end to end: with the prompt's keys
// and values from disk but for the first question. docs/performance.md has more lengths and depths, and Transformers.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>

#include "base/format.h"
#include "base/json.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

constexpr int64_t kContext = 131'072;
constexpr const char* kDemo = CPUINFER_SOURCE_DIR "/models/demo";

// Of the kind that the demo model was trained on (tools/demo_model/corpus.py).
constexpr const char* kProse[] = {
    "Viktor was a teacher. He worked in the school of the village.",
    "Every morning he had to teach the children to read, and in the evening he liked to walk in the garden.",
    "One autumn day a cold storm came over the hills.",
    "The wind was so strong that Viktor could hardly teach the children to read.",
    "Suddenly he heard a voice near the tower.",
    "It was Otto, who had lost the way in the rain.",
    "Viktor took a green lantern and went out to help him.",
    "Slowly and carefully they walked home through the rain.",
    "The people of the village still tell this story today.",
    "In a small village lived a carpenter whose name was Emma.",
    "Every morning she had to build tables and chairs, and in the evening she liked to carve small animals.",
    "On a cold winter day Anton came to visit her and brought a gift.",
    "It was a crimson cup.",
    "The sky was clear, and the air smelled of grass.",
    "The path was long, but Emma did not mind.",
    "Emma did not know what to say, and put the cup on the table.",
    "A few days later she took the cup to the lighthouse, which lay on a high rock above the sea.",
    "She could hear the wind and the gulls, and she smiled.",
    "There she opened the cup and found a small map inside.",
    "Now Emma could only laugh.",
    "And so Emma went back to her work, and everything was well.",
    "The river lies between the hills and the town.",
    "There you can see clear water and willows on the bank.",
    "In the evening you can hear water that runs over stones.",
    "At night the river is dark and still.",
    "It is deep and never in a hurry, as the old people of the village know.",
    "In summer it is full of visitors.",
    "The river is a place that people love.",
    "A hedgehog is a careful animal with a thousand spines and a small nose.",
    "The hedgehog eats beetles, and sometimes worms.",
    "A young hedgehog stays with its mother until it can find beetles by itself.",
    "You can hear it rustle in the dry leaves.",
    "This is why many people like the hedgehog.",
    "A horse is an animal that lives in a stable beside the farm.",
    "If you meet a horse, keep a little distance and enjoy the sight.",
    "With a long mane and shining eyes, it is hard to miss.",
    "In winter it stays close to its home.",
    "The carpenter works in a workshop full of wood and is known to be skilled and calm.",
    "Without a saw, the carpenter could not build tables and chairs.",
    "The most important tools are a saw and a hammer.",
    "The carpenter is only worried about the wet wood.",
    "The life of a carpenter is simple, but it is a good life.",
    "The crow is clever and bold, and it is easy to know by black feathers and a strong beak.",
    "You can hear it call over the fields from far away.",
    "It is most active in the morning, when it likes to collect shining things.",
    "The crow eats seeds and worms.",
    "People say that the crow can count to five.",
    "With black feathers and a strong beak, it is hard to miss.",
    "A young crow stays with its mother until it can find seeds by itself.",
    "We are lucky that the crow still lives in the tall trees near the field.",
    "A bat is a quiet animal with thin wings and tiny claws.",
    "With thin wings and tiny claws, it is easy to see.",
    "If you meet a bat, stay quiet and watch.",
    "You can hear it flutter around the tower when the wind is still.",
    "Many people think that the bat finds its way with its ears.",
    "A young bat stays with its mother until it can find moths by itself.",
    "The bat likes to eat moths, and sometimes flies.",
    "Long ago there was a farmer named Rosa, who worked on a farm outside the village.",
    "Rosa was calm and strong, and every day she had to feed the animals.",
    "One day, Rosa noticed that her violet scarf was not in its place."};

struct Fact {
  const char* object;
  const char* code;
  double depth;  // 0: the first sentence, 1: the last one
};
constexpr Fact kFacts[] = {{"grey door", "2468", 0},
                           {"copper train", "8510", 0.25},
                           {"purple rocket", "1005", 0.5},
                           {"green ladder", "7394", 0.75},
                           {"white bell", "6127", 1}};

std::string document(int sentences) {
  std::mt19937 random(11);
  std::string text;
  size_t next = 0;
  for (int i = 0; i <= sentences; ++i) {
    while (next < std::size(kFacts) && i >= static_cast<int>(kFacts[next].depth * sentences)) {
      text += format(" The code of the {} is {}.", kFacts[next].object, kFacts[next].code);
      ++next;
    }
    if (i < sentences) text += std::string(" ") + kProse[random() % std::size(kProse)];
  }
  return text.substr(1);
}

std::string prompt(const std::string& text, const Fact& fact) {
  return format(
      "<|im_start|>user\n{} What is the code of the {}?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
      text, fact.object);
}

int64_t count_tokens(const std::string& text) {
  const Outcome outcome = pipe_cpuinfer(text, {"tokenize", "-m", kDemo});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  const auto ids = parse_json(outcome.out, "ids");
  REQUIRE(ids);
  return static_cast<int64_t>(ids->as_array().size());
}

}  // namespace

TEST_CASE("a fact at 0, 25, 50, 75 and 100 % of 131,072 tokens is recalled") {
  constexpr int64_t kAnswer = 24;
  const int64_t tried = count_tokens(prompt(document(2000), kFacts[1]));
  const int sentences = static_cast<int>((kContext - kAnswer - 200) * 2000 / tried);
  const std::string text = document(sentences);
  const int64_t tokens = count_tokens(prompt(text, kFacts[1]));
  REQUIRE(tokens <= kContext - kAnswer);
  REQUIRE(tokens > kContext - 1500);
  const std::string store = (scratch_directory() / "recall").string(), file = (scratch_directory() / "prompt").string();
  for (const Fact& fact : kFacts) {
    CAPTURE(fact.depth);
    write_file(file, prompt(text, fact));
    ProcessOptions options;
    options.limit_ms = 3'000'000;
    const Outcome outcome = run_cpuinfer({"-m", kDemo, "--raw", "--greedy", "-n", std::to_string(kAnswer), "--ctx",
                                          "128k", "--kv-store", store, "--chunk", "2048", "--prompt-file", file},
                                         options);
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
    CHECK_MESSAGE(outcome.out.find(format("The code of the {} is {}.", fact.object, fact.code)) == 0, outcome.out);
    MESSAGE(outcome.err.substr(outcome.err.rfind("prompt ")));
  }
}
