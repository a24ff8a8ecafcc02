/* A list of pointers that grows. */
#ifndef LIST_H
#define LIST_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

struct list {
    void **items;
    size_t count, room;
};

static inline void list_append(struct list *list, void *item) {
    if (list->count == list->room) {
        list->room = list->room ? list->room * 2 : 2;
        list->items = realloc(list->items, list->room * sizeof *list->items);
        if (!list->items) {
            fputs("out of memory\n", stderr);
            exit(1);
        }
    }
    list->items[list->count++] = item;
}

/* Remove an item; the last one takes its place. */
static inline void list_remove(struct list *list, const void *item) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i] == item) {
            list->items[i] = list->items[--list->count];
            return;
        }
    }
}

static inline void list_free(struct list *list) {
    free(list->items);
    *list = (struct list){0};
}

#endif
