// Counts the words of standard input, without regard to case: "COUNT WORD" a line, the most frequent first.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef REVISION
#define REVISION "unknown"
#endif

enum { LONGEST = 63 };

struct word {
  char text[LONGEST + 1];
  size_t count;
};

struct tally {
  struct word *words;
  size_t used, room;
};

static void die(const char *why) {
  fprintf(stderr, "tally: %s\n", why);
  exit(1);
}

static void add(struct tally *tally, const char *text) {
  for (size_t i = 0; i < tally->used; i++) {
    if (strcmp(tally->words[i].text, text) == 0) {
      tally->words[i].count++;
      return;
    }
  }
  if (tally->used == tally->room) {
    tally->room = tally->room == 0 ? 64 : tally->room * 2;
    struct word *grown = realloc(tally->words, tally->room * sizeof *grown);
    if (grown == NULL) die("out of memory");
    tally->words = grown;
  }
  struct word *word = &tally->words[tally->used++];
  strcpy(word->text, text);
  word->count = 1;
}

static int by_count(const void *a, const void *b) {
  const struct word *x = a, *y = b;
  if (x->count != y->count) return x->count < y->count ? 1 : -1;
  return strcmp(x->text, y->text);
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--version") == 0) {
    puts("tally " REVISION);
    return 0;
  }
  if (argc != 1) die("usage: tally [--version] < TEXT");

  struct tally tally = {0};
  char text[LONGEST + 1];
  size_t length = 0;
  for (int c = getchar();; c = getchar()) {
    if (c != EOF && (isalnum(c) || c == '\'')) {
      if (length == LONGEST) die("a word is longer than 63 characters");
      text[length++] = (char)tolower(c);
    } else if (length > 0) {
      text[length] = '\0';
      add(&tally, text);
      length = 0;
    }
    if (c == EOF) break;
  }
  if (ferror(stdin)) die("cannot read standard input");
  if (tally.used > 0) qsort(tally.words, tally.used, sizeof *tally.words, by_count);
  for (size_t i = 0; i < tally.used; i++) printf("%zu %s\n", tally.words[i].count, tally.words[i].text);
  free(tally.words);
  return 0;
}
