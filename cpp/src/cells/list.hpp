// The cells that exist: the one list that everything else reads.
#pragma once

#include "gru.hpp"
#include "lstm.hpp"
#include "simple_rnn.hpp"

#define FASTRNN_FOR_EACH_CELL(DO) \
  DO(simple_rnn, SimpleRnn)       \
  DO(lstm, Lstm)                  \
  DO(gru, Gru)                    \
  DO(gru_reset_before, GruResetBefore)
